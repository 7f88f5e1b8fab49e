"Figures: pixels are drawn as they are or refused; nothing leaks; every picture has its words."

import io
import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from ae_course import figures as f


def pixels(figure) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(f.png(figure))).convert("RGBA"))


def places(picture: np.ndarray, part: np.ndarray) -> list:
    windows = np.lib.stride_tricks.sliding_window_view(picture, part.shape)
    return np.argwhere((windows == part).all((2, 3))).tolist()


@pytest.fixture
def images():
    return torch.randint(0, 256, (12, 1, 9, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_importing_is_light_and_drawing_leaves_no_pyplot():
    code = """
import sys
import ae_course.figures as f
assert not {"matplotlib", "IPython", "ipywidgets", "scipy"} & set(sys.modules), "a heavy import"
import matplotlib
rc = lambda: {k: matplotlib.rcParams[k] for k in matplotlib.rcParams if k != "backend"}  # asking for the backend imports pyplot
before = rc()
f.png(f.curves({"a": [3, 2, 1]}))
assert "matplotlib.pyplot" not in sys.modules
assert rc() == before
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "title,labels,headers", [(None, None, None), ("a title", ["first", "second"], None), ("t" * 90, ["", ""], list("abcdef"))]
)
def test_every_image_is_drawn_pixel_by_pixel_and_in_its_place(images, title, labels, headers):
    figure = f.image_grid([images[:6], images[6:].float() / 255], title=title, labels=labels, headers=headers, scale=2)
    grey = pixels(figure)[..., 0]
    found = [places(grey, image[0].numpy().repeat(2, 0).repeat(2, 1)) for image in images]
    assert all(len(place) == 1 for place in found)
    rows, columns = np.array(found)[:, 0].reshape(2, 6, 2).transpose(2, 0, 1)
    assert (np.diff(columns, axis=1) == 14 + f.GAP).all() and (np.diff(rows, axis=0) == 18 + f.GAP).all()


def test_colour_images_keep_their_channels():
    rgb = torch.zeros(1, 3, 4, 4)
    rgb[0, 0], rgb[0, 2] = 1.0, 0.5
    picture = pixels(f.image_grid(rgb, scale=5)).reshape(-1, 4)
    assert (picture == [255, 0, 127, 255]).all(1).sum() + (picture == [255, 0, 128, 255]).all(1).sum() == 400


def test_one_set_breaks_into_rows_and_the_rest_is_white(images):
    figure = f.image_grid(images, columns=5, scale=1)
    assert figure.axes[0].get_images()[0].get_array().shape == (3 * 9 + 2 * f.GAP, 5 * 7 + 4 * f.GAP, 3)
    assert (figure.axes[0].get_images()[0].get_array()[-9:, -7:] == 1).all()


def test_background_is_opaque_white_under_any_style(images):
    from matplotlib import style

    with style.context("dark_background"):
        plain = [f.image_grid(images), f.curves({"a": [2, 1]}), f.latent_scatter(torch.randn(9, 2)), f.dots({"a": 1.0})]
        for figure in plain:
            assert (pixels(figure)[:2, :2] == 255).all()
            assert (pixels(figure)[..., 3] == 255).all()
    assert (pixels(f.curves({"a": [2, 1]})) == pixels(plain[1])).all()


@pytest.mark.parametrize("figure", [f.curves({"a": [2, 1], "b": [2, 1]}), f.latent_scatter(torch.eye(2), [0, 1]), f.dots({"a": 1.0})])
def test_a_figure_drawn_twice_is_the_same_twice(figure):
    assert f.png(figure) == f.png(figure)


@pytest.mark.parametrize("spoil,message", [
    (lambda x: x.float(), "expected 0 to 1"),
    (lambda x: x.short(), "torch.int16"),
    (lambda x: x.movedim(1, 3), "(N, C, H, W)"),
    (lambda x: x[0], "(N, C, H, W)"),
    (lambda x: x[:0], "N at least 1"),
    (lambda x: x.float() / 0, "NaN or infinite"),
    (lambda x: x.float() / 255 - 0.01, "clip=True"),
])  # fmt: skip
def test_wrong_images_are_refused_with_got_and_expected(images, spoil, message):
    with pytest.raises(ValueError) as caught:
        f.image_grid({"spoiled": spoil(images)})
    assert all(part in str(caught.value) for part in (message, "spoiled", "got", "expected"))


def test_clip_and_value_range_are_the_two_ways_out():
    x = torch.tensor([-1.0, 0.0, 1.0, 3.0]).view(1, 1, 2, 2)
    clipped = f.image_grid(x, clip=True, scale=1).axes[0].get_images()[0].get_array()[..., 0]
    ranged = f.image_grid(x, value_range=(-1, 3), scale=1).axes[0].get_images()[0].get_array()[..., 0]
    assert np.allclose(clipped, [[0, 0], [1, 1]]) and np.allclose(ranged, [[0, 0.25], [0.5, 1]])
    f.image_grid(torch.full((1, 1, 2, 2), 1 + 1e-6))  # rounding is not a fault


def test_grids_of_unequal_parts_are_refused(images):
    with pytest.raises(ValueError, match="3 labels for 1 rows"):
        f.image_grid([images], labels=["a", "b", "c"])
    with pytest.raises(ValueError, match="one size"):
        f.image_grid([images, images[:, :, :5]])
    with pytest.raises(ValueError, match="headers: got 2, expected 12"):
        f.image_grid([images], headers=["a", "b"])
    with pytest.raises(ValueError, match="that of the originals"):
        f.reconstruction_grid(images, {"z = 1": images[:3]})


def test_reconstruction_grid_has_originals_first(images):
    x = images.float() / 255
    figure = f.reconstruction_grid(x, {"z = 2": 1 - x, "z = 1": 0 * x}, scale=1)
    drawn = figure.axes[0].get_images()[0].get_array()[..., 0]
    for row, expected in enumerate((x, 1 - x, 0 * x)):
        assert np.allclose(drawn[row * (9 + f.GAP) :][:9, :7], expected[0, 0], atol=1e-6)
    assert [t.get_text() for t in figure.texts] == ["original", "z = 2", "z = 1"]
    assert "z = 1" in figure.alt
    single = f.reconstruction_grid(x, x.requires_grad_() * 1)
    assert [t.get_text() for t in single.texts] == ["original", "reconstruction"]


def test_alt_text_goes_into_file_page_and_bundle(tmp_path, images):
    figure = f.image_grid(images, alt="Zwölf \"Bilder\" <i> – 図")
    path = f.save(figure, tmp_path / "new folder" / "a.png")
    assert Image.open(path).text["Description"] == figure.alt
    bundle = figure._repr_mimebundle_()
    assert bundle["text/plain"] == figure.alt and 'alt="Zwölf &quot;Bilder&quot; &lt;i&gt; – 図"' in bundle["text/html"]
    with pytest.raises(ValueError, match=".png"):
        f.save(figure, tmp_path / "a.jpg")


def test_foreign_figures_are_shown_with_a_warning_or_the_alt_given(tmp_path):
    from matplotlib.figure import Figure

    with pytest.warns(UserWarning, match="alt text"):
        f.save(Figure(), tmp_path / "a.png")
    assert Image.open(f.save(Figure(), tmp_path / "b.png", alt="an empty page")).text["Description"] == "an empty page"


def test_show_without_jupyter_prints_the_words(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython.display", None)
    f.show(f.curves({"a": [2, 1]}, alt="a falling line"))
    assert capsys.readouterr().out == "[a falling line]\n"


def test_pick_is_fixed_by_its_seed_and_without_repetition():
    assert f.pick(8, 100, seed=3).equal(f.pick(8, 100, seed=3))
    assert not f.pick(8, 100, seed=3).equal(f.pick(8, 100, seed=4))
    assert f.pick(100, 100).equal(torch.arange(100))
    for n in (0, 101):
        with pytest.raises(ValueError, match="expected 1 to 100"):
            f.pick(n, 100)


class History:
    rows = [{"epoch": 1, "loss": 0.5, "validation_loss": 0.6}, {"epoch": 2, "loss": 0.4, "validation_loss": 0.55}]

    def __getitem__(self, key):
        return [row[key] for row in self.rows]


def drawn_lines(figure) -> dict:
    axes = figure.axes[0]
    names = [t.get_text() for t in axes.texts if t.get_alpha() != 0]
    return {name: (line.get_xdata().tolist(), line.get_ydata().tolist()) for name, line in zip(names, axes.get_lines())}


def test_curves_draw_what_they_are_given():
    lines = drawn_lines(f.curves({"values": [3, 2, 1], "pairs": ([10, 20], [2.5, 1.5]), "history": History(), "two values": [5, 4]}))
    assert lines == {
        "values": ([1, 2, 3], [3, 2, 1]), "pairs": ([10, 20], [2.5, 1.5]), "history": ([1, 2], [0.5, 0.4]), "two values": ([1, 2], [5, 4]),
    }  # fmt: skip
    assert drawn_lines(f.curves(History())) == {"training": ([1, 2], [0.5, 0.4]), "held out": ([1, 2], [0.6, 0.55])}


def test_a_logarithmic_axis_that_cannot_be_is_linear_and_says_so():
    assert f.curves({"a": [1.0, 0.1]}).axes[0].get_yscale() == "log"
    with pytest.warns(UserWarning, match="smallest value is -0.1"):
        assert f.curves({"a": [1.0, -0.1]}).axes[0].get_yscale() == "linear"
    with pytest.warns(UserWarning, match="size: the smallest value is 0"):
        assert f.curves({"a": ([0, 1], [2, 1])}, x="size", log_x=True).axes[0].get_xscale() == "linear"


def test_gaps_single_points_and_nothing_finite_can_be_drawn():
    figure = f.curves({"gap": [1.0, float("nan"), None, 0.5], "point": [0.7], "nothing": [float("nan")] * 2})
    assert [t.get_text() for t in figure.axes[0].texts][-1] == "nothing (no finite value)"
    f.png(f.curves({"all lost": [float("inf")] * 3}))
    f.png(f.curves({"one": [0.5]}))


def test_faulty_curves_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        f.curves({})
    with pytest.raises(ValueError, match="a: got 2 x and 3 y"):
        f.curves({"a": ([1, 2], [1, 2, 3])})
    with pytest.raises(ValueError, match="bands"):
        f.curves({"a": [1, 2]}, bands={"b": ([1, 1], [2, 2])})
    with pytest.raises(ValueError, match="bands"):
        f.curves({"a": [1, 2]}, bands={"a": ([1], [2])})


def test_a_band_belongs_to_its_line_and_sets_the_axis():
    figure = f.curves({"a": [1.0, 1.0]}, bands={"a": ([0.1, 0.1], [10.0, 10.0])})
    low, high = figure.axes[0].get_ylim()
    assert low <= 0.1 and high >= 10


def test_the_y_range_can_be_shared():
    assert f.curves({"a": [1.0, 0.5]}, y_range=(0.1, 2)).axes[0].get_ylim() == (0.1, 2)


@pytest.mark.parametrize("n", [2, 12, 40])
def test_labels_stand_apart_inside_the_figure_and_in_order(n):
    figure = f.curves({f"line {i}": [1.0, 0.5 + 1e-4 * i] for i in range(n)})
    figure.draw_without_rendering()
    boxes = [t.get_window_extent() for t in figure.axes[0].texts if t.get_alpha() != 0]
    assert all(a.y1 <= b.y0 + 1 for a, b in itertools.pairwise(boxes))  # ascending, as the lines end
    assert min(b.y0 for b in boxes) > 0 and max(b.y1 for b in boxes) < figure.bbox.height and max(b.x1 for b in boxes) <= figure.bbox.width


def test_spread_keeps_distance_order_and_moves_least():
    from scipy.optimize import minimize

    wanted = np.array([0.3, 0.31, 0.8, 0.35, 0.79])
    ours = f._spread(wanted, 0.1, -9, 9)
    order = np.argsort(wanted)
    gaps = [{"type": "ineq", "fun": lambda p, a=a, b=b: p[b] - p[a] - 0.1} for a, b in itertools.pairwise(order)]
    best = minimize(lambda p: ((p - wanted) ** 2).sum(), np.linspace(0, 1, 5)[np.argsort(order)], constraints=gaps, tol=1e-12).x
    assert np.allclose(ours, best, atol=1e-5)


def test_lines_differ_in_more_than_colour():
    looks = f._looks(28)
    assert len({(str(look["linestyle"]), look["marker"]) for look in looks[:20]}) == 20
    dark_to_bright = [0.2126 * c[0] + 0.7152 * c[1] + 0.0722 * c[2] for c in (look["color"] for look in f._looks(9, ordered=True))]
    assert (np.diff(dark_to_bright) > 0).all()


def test_dots_show_intervals_series_and_what_is_undefined():
    figure = f.dots({"a": {"x": (2, 1, 3), "y": 5.0}, "b": {"x": (1, 0.5, 2), "y": float("nan")}}, reference=1.5)
    segments = [c.get_segments() for c in figure.axes[0].collections]
    assert np.allclose(segments[0][0][:, 0], [1, 3]) and np.allclose(segments[0][1][:, 0], [5, 5])
    assert [t.get_text() for t in figure.axes[0].texts] == ["undefined"]
    with pytest.raises(ValueError, match="same names"):
        f.dots({"a": {"x": 1.0}, "b": {"z": 1.0}})


def test_latent_scatter_draws_a_fixed_sample_and_unlabelled_points():
    z, labels = torch.randn(500, 2, generator=torch.Generator().manual_seed(0)), torch.arange(500) % 12 - 1
    figure = f.latent_scatter(z, labels, limit=100)
    points = np.concatenate([c.get_offsets() for c in figure.axes[0].collections])
    again = np.concatenate([c.get_offsets() for c in f.latent_scatter(z, labels, limit=100).axes[0].collections])
    assert len(points) == 100 and np.array_equal(points, again)
    assert {tuple(p) for p in points.round(5)} <= {tuple(p) for p in z.double().numpy().round(5)}
    assert figure.axes[0].get_legend().get_texts()[0].get_text() == "unlabelled"
    assert len(f.latent_scatter(z).axes[0].collections) == 1


def test_names_of_classes_do_not_overlap():
    z = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    figure = f.latent_scatter(z, torch.arange(300) % 10, classes=[f"class {i}" for i in range(10)])
    figure.draw_without_rendering()
    for a, b in itertools.combinations([t.get_window_extent() for t in figure.axes[0].texts], 2):
        assert not (min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1)


def test_faulty_codes_are_refused():
    for wrong in (torch.randn(5, 16), torch.randn(5), torch.zeros(0, 2), torch.full((5, 2), float("nan"))):
        with pytest.raises(ValueError, match=r"expected \(N, 2\)"):
            f.latent_scatter(wrong)
    with pytest.raises(ValueError, match="one a code"):
        f.latent_scatter(torch.randn(5, 2), torch.zeros(4))


def test_the_map_puts_each_decoded_code_at_its_place():
    extent, steps = (-2.0, 2.0, 0.0, 1.0), 5
    codes = f.code_grid(extent, steps)
    assert codes[0].tolist() == [-2, 1] and codes[-1].tolist() == [2, 0] and codes[1].tolist() == [-1, 1]
    shade = (codes[:, 0] + 2) / 8 + codes[:, 1] / 2  # brightness tells the code
    figure = f.latent_map(shade.view(-1, 1, 1, 1).expand(-1, 1, 6, 6), extent)
    drawn = figure.axes[0].get_images()[0]
    left, right, bottom, top = drawn.get_extent()
    array = drawn.get_array()[..., 0]
    for code, value in zip(codes, shade):
        column, row = (code[0].item() - left) / (right - left) * array.shape[1], (top - code[1].item()) / (top - bottom) * array.shape[0]
        assert abs(array[int(row), int(column)] - value.item()) < 1e-6
    with pytest.raises(ValueError, match="square number"):
        f.latent_map(torch.zeros(10, 1, 4, 4))


def test_weights_share_one_scale_about_zero():
    weights = torch.tensor([[1.0, -2.0], [0.5, 0.0]])
    figure = f.weight_images(weights, (1, 2), scale=1)
    array = figure.axes[0].get_images()[0].get_array()
    one, minus_two, half, zero = array[0, 0], array[0, 1], array[0, 2 + f.GAP], array[0, 3 + f.GAP]
    assert zero.min() > 0.96 and minus_two[2] > minus_two[0] and one[0] > one[2]
    assert half.min() > one.min()  # half as far from zero, paler: not scaled on its own
    assert "-2 to 2" in figure.alt
    f.weight_images(torch.zeros(3, 4), (2, 2))
    with pytest.raises(ValueError, match="limit: got 1, but the largest absolute weight is 2"):
        f.weight_images(weights, (1, 2), limit=1)
    for wrong in (torch.zeros(2, 5), torch.full((2, 4), float("inf"))):
        with pytest.raises(ValueError, match=r"\(k, 2 \* 2\)"):
            f.weight_images(wrong, (2, 2))


def test_the_slider_shows_in_its_static_grid_every_picture_it_can_move_to(images):
    calls = []

    def draw(k, flip):
        calls.append((k, flip))
        return images[:k + 1].flip(3) if flip else images[: k + 1]

    moving = f.slider(draw, k=[1, 2, 3], flip=[False, True])
    assert calls == list(itertools.product([1, 2, 3], [False, True]))
    assert [t.get_text() for t in moving.static.texts] == [f"k = {k}, flip = {flip}" for k, flip in calls]
    controls, stack = moving.widget.children[:2], moving.widget.children[2]
    assert [c.description for c in controls] == ["k", "flip"] and len(stack.children) == 3
    pages = [page.value for inner in stack.children for page in inner.children]
    assert len(pages) == len(set(pages)) == 6
    for (k, flip), page in zip(calls, pages):
        assert f'alt="k = {k}, flip = {flip}' in page


def test_the_slider_takes_figures_too():
    moving = f.slider(lambda lr: f.curves({"a": [lr, lr / 2]}), lr=[0.1, 0.25])
    assert [t.get_text() for t in moving.static.texts] == ["lr = 0.1", "lr = 0.25"] and len(moving.static.axes) == 2


def test_without_ipywidgets_the_grid_remains(images, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    shown = []
    monkeypatch.setattr(f, "show", shown.append)
    moving = f.slider(lambda k: images[:k], k=[1, 2])
    moving._ipython_display_()
    assert moving.widget is None and shown == [moving.static]


def test_faulty_sliders_are_refused(images):
    with pytest.raises(ValueError, match="no range"):
        f.slider(lambda: images)
    with pytest.raises(ValueError, match="1 to 36 combinations"):
        f.slider(lambda k, j: images, k=range(10), j=range(10))
    with pytest.raises(ValueError, match="one kind"):
        f.slider(lambda k: images if k else f.curves({"a": [1]}), k=[0, 1])


def test_figures_do_not_pile_up(images):
    import gc
    import weakref

    figures = [weakref.ref(f.image_grid(images)) for _ in range(3)]
    gc.collect()
    assert all(figure() is None for figure in figures)


def test_quiver_draws_the_arrows_to_scale_and_refuses_others():
    x, v = torch.randn(2, 30, 2, generator=torch.Generator().manual_seed(0))
    figure = f.quiver(x, v, scale=0.5, curve=torch.rand(9, 2), values=torch.arange(30.0), value_range=(0, 40), label="degrees")
    axes, arrows = figure.axes[0], figure.axes[0].collections[0]
    assert np.allclose(arrows.get_offsets(), x) and np.allclose(np.stack([arrows.U, arrows.V], 1), v / 2)
    assert arrows.get_clim() == (0, 40) and axes.get_aspect() == 1 and figure.axes[1].get_ylabel() == "degrees"
    ends = torch.cat([x, x + v / 2]).numpy()  # no arrow leaves the frame
    assert (ends >= [axes.get_xlim()[0], axes.get_ylim()[0]]).all() and (ends <= [axes.get_xlim()[1], axes.get_ylim()[1]]).all()
    assert f.png(figure) == f.png(figure)
    for points, field in ((x, v[:5]), (x[:, :1], v[:, :1]), (x[:0], v[:0]), (x, v / 0)):
        with pytest.raises(ValueError, match="quiver: got points"):
            f.quiver(points, field)
    with pytest.raises(ValueError, match="one an arrow"):
        f.quiver(x, v, values=torch.zeros(3))


def test_a_table_as_squares_keeps_its_range_its_numbers_and_its_gaps():
    values = torch.tensor([[1.0, 0.25], [float("nan"), 12.5]])
    figure = f.matrix(values, ["a", "b"], ["c", "d"], value_range=(0, 20), digits=1, groups=[1], label="likeness")
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["1.0", ".2", "12.5"]
    assert axes.get_images()[0].get_clim() == (0, 20) and axes.get_images()[0].get_array().mask.sum() == 1
    assert [label.get_text() for label in axes.get_xticklabels()] == ["c", "d"] and figure.axes[1].get_ylabel() == "likeness"
    assert f.png(figure) == f.png(figure)
    for wrong in ({"names": ["a"]}, {"names": ["a", "b"], "value_range": (0, 1)}):
        with pytest.raises(ValueError, match="values: got"):
            f.matrix(values, **wrong)


def test_feature_maps_share_one_scale_and_are_framed_inside_the_image():
    image, maps = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 4, 4)
    maps[0, 0, 3], maps[1, 2, 1] = 2.0, -4.0
    figure = f.feature_maps(image, maps, cell=(2, 1), box=(-3, 1, 5, 20))
    veils = [axes.get_images()[1].get_array()[..., 3] for axes in figure.axes[1:3]]
    assert veils[0][0, 3] == 0.4 and veils[1][2, 1] == 0.8 and sum((veil > 0).sum() for veil in veils) == 2
    assert all(axes.get_images()[0].get_clim() == (-4, 4) for axes in figure.axes[4:6])
    frame = figure.axes[0].patches[0]
    assert (frame.get_x(), frame.get_y(), frame.get_width(), frame.get_height()) == (0.5, -0.5, 7, 5)
    for wrong in ({"maps": maps[0]}, {"maps": maps / 0}, {"maps": maps, "names": ["one"]}, {"maps": maps, "cell": (4, 0)}):
        with pytest.raises(ValueError, match="maps: got|names: got|cell: got"):
            f.feature_maps(image, **wrong)


def test_lines_of_a_family_share_a_colour_from_light_to_dark():
    from matplotlib.colors import to_rgb

    axes = f.curves({"4x4x3": [3, 1], "4x4x12": [2, 1], "8x8x3": [4, 1]}, families={"4x4x3": 4, "4x4x12": 4, "8x8x3": 8}).axes[0]
    lines = {line.get_ydata()[0]: line for line in axes.lines if list(line.get_xdata()) == [1, 2]}
    light, dark, other = (np.array(to_rgb(lines[y].get_color())) for y in (3, 2, 4))
    assert np.allclose(dark, to_rgb(f.COLORS[1])) and np.allclose(other, to_rgb(f.COLORS[2]))
    share = (1 - light) / (1 - dark)  # mixed with white, all channels alike
    assert np.allclose(share, share[0]) and share[0] < 0.9
    assert lines[3].get_linestyle() == lines[2].get_linestyle() != lines[4].get_linestyle()
    assert lines[3].get_marker() != lines[2].get_marker()
