"""The page of a run, ``report.html``: one file that opens from disk, asks for nothing from anywhere, and needs no script."""

from __future__ import annotations

from collections.abc import Iterator

from ..statistics import HISTOGRAM_STEP
from . import charts, pictures, words
from .contents import Cause, Contents, FeatureMap, LayerFacts, Sample
from .style import STYLE

# Of all pictures together, before they become text, which makes them a third larger: a page can be sent by mail.
PICTURE_BYTES = 800_000
# Of dead channels, the first so many are named.
CHANNELS_NAMED = 4
LONGEST_OPTION = 400

# Said to the browser, should anything of a user's ever get past the escapes: nothing is fetched, nothing runs.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def render(contents: Contents) -> str:
    """Gives the page as HTML; the same contents give the same text."""
    budget = _Budget(PICTURE_BYTES)
    sections = [
        _figures(contents),
        _section("Where the time went", _stages(contents)),
        _section("Samples", _samples(contents, budget)),
        _section("Layers", _layers(contents)),
        _section("Images that failed", _causes(contents)),
        _section("What was run", _options(contents)),
    ]
    title = words.plain(contents.name)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title} – features</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<header>\n<h1>{words.name(contents.name)}</h1>\n"
        f'<p class="soft">{_subtitle(contents)}</p>\n{_warning(contents)}</header>\n<main>\n'
        + "".join(sections)
        + "</main>\n</body>\n</html>\n"
    )


class _Budget:
    """What pictures may still take."""

    def __init__(self, size_bytes: int) -> None:
        self.left_bytes = size_bytes

    def image(self, picture: bytes, description: str, size: tuple[int, int]) -> str:
        """Gives a picture as an element; a word in its place where there is no room any more."""
        if len(picture) > self.left_bytes:
            return '<p class="none">left out, for the size of this page</p>'
        self.left_bytes -= len(picture)
        height, width = size
        return f'<img src="{pictures.data_address(picture)}" width="{width}" height="{height}" alt="{words.plain(description)}">'


def _section(title: str, content: Iterator[str]) -> str:
    text = "\n".join(content)
    return f"<section>\n<h2>{title}</h2>\n{text}\n</section>\n" if text else ""


def _subtitle(contents: Contents) -> str:
    names = [layer.name for layer in contents.layers]
    layers = ", ".join(names) if len(names) <= 6 else f"{len(names)} layers from {names[0]} to {names[-1]}"
    return f"{words.counted(contents.rows, 'image')}, {words.plain(layers)} of {words.plain(contents.network)}"


def _warning(contents: Contents) -> str:
    return f'<p class="warning">{words.plain(contents.warning, LONGEST_OPTION)}</p>\n' if contents.warning else ""


def _figures(contents: Contents) -> str:
    cells = "".join(
        f"<div><dt>{words.plain(name)}</dt><dd>{words.plain(text)}</dd></div>" for name, text in contents.figures.items()
    )
    return f'<dl class="figures">{cells}</dl>\n'


def _samples(contents: Contents, budget: _Budget) -> Iterator[str]:
    if not contents.samples:
        return
    shown, there = contents.sampled_layers, len(contents.layers)
    which = f"{len(shown)} of {there} layers" if len(shown) < there else "all layers" if there > 1 else words.plain(shown[0])
    yield (
        f'<p class="soft">Images spread over the run; of {which} channel 0 and the two channels that are most active on the '
        "image. Each map from its own least value, dark, to its own largest, bright.</p>"
    )
    for sample in contents.samples:
        yield _sample(sample, budget)


def _sample(sample: Sample, budget: _Budget) -> str:
    height, width = sample.size
    label = f", label {words.name(sample.label)}" if sample.label else ""
    if sample.picture is None:
        photo = f'<p class="soft">{words.plain(sample.note)}</p>'
    else:
        photo = budget.image(pictures.photograph(sample.picture), f"{sample.key}, small", sample.picture.shape[:2])
    maps = "".join(_maps(layer, of_layer, sample, budget) for layer, of_layer in sample.maps.items())
    maps += "".join(
        f"<div><p>{words.plain(layer)}</p><p class='none'>{words.plain(note)}</p></div>" for layer, note in sample.notes.items()
    )
    return (
        f'<article class="sample"><div class="name"><h3>{words.name(sample.key)}</h3><p class="soft">row {sample.row}, {width} × '
        f'{height} px{label}</p></div><div class="photo">{photo}</div><div class="maps">{maps}</div></article>'
    )


def _maps(layer: str, maps: tuple[FeatureMap, ...], sample: Sample, budget: _Budget) -> str:
    tiles = []
    for of_channel in maps:
        what = f"channel {of_channel.channel}" if of_channel.channel is not None else "all channels"
        picture = pictures.feature_map(of_channel.values, of_channel.low, of_channel.high)
        image = budget.image(picture, f"{layer}, {what}, of {sample.key}", of_channel.values.shape[:2])
        reach = f"{words.number(of_channel.low, 3)} to {words.number(of_channel.high, 3)}"
        tiles.append(f"<figure>{image}<figcaption>{what}<br>{reach}</figcaption></figure>")
    return f'<div><p>{words.plain(layer)}</p><div class="tiles">{"".join(tiles)}</div></div>'


def _layers(contents: Contents) -> Iterator[str]:
    if any(layer.statistics.rows for layer in contents.layers):
        yield (
            f'<p class="soft">Histograms: values other than zero of every {HISTOGRAM_STEP}th position, in bins of powers of two; '
            "what is too small to be shown is in those next to zero.</p>"
        )
    yield '<div class="layers">' + "".join(map(_layer, contents.layers)) + "</div>"


def _layer(layer: LayerFacts) -> str:
    head = (
        f'<header><h3>{words.plain(layer.name)}</h3><span class="soft">{words.shape(layer.shape, layer.channels)}</span></header>'
    )
    statistics = layer.statistics
    if not statistics.rows:
        return f'<article class="card">{head}</article>'
    dead = statistics.dead_channels.tolist()
    named = f" ({', '.join(map(str, dead[:CHANNELS_NAMED]))}{', …' * (len(dead) > CHANNELS_NAMED)})" if dead else ""
    lines = {
        "range": f"{words.number(statistics.minimum)} to {words.number(statistics.maximum)}",
        "mean ± deviation": f"{words.number(statistics.mean)} ± {words.number(statistics.standard_deviation)}",
        "zeros": words.share(statistics.zero_share),
        "dead channels": f"{len(dead)} of {layer.channels}{named}",
    }
    items = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in lines.items())
    return f'<article class="card">{head}{charts.histogram(statistics)}<dl>{items}</dl></article>'


def _stages(contents: Contents) -> Iterator[str]:
    total = sum(stage.seconds for stage in contents.stages)
    rows = []
    for stage in contents.stages:
        is_limit = stage.name == contents.bottleneck
        part = stage.seconds / total if total else 0.0
        name = f"<span{' class=limit' * is_limit}>{words.plain(stage.name)}</span>"
        rows.append(
            f'<div>{name} <span class="soft">{words.plain(stage.meaning)}</span></div>'
            f'<div class="number">{stage.seconds:.1f}\u202fs</div>{charts.bar(part, "strong" if is_limit else "bar")}'
        )
    yield f'<div class="stages">{"".join(rows)}</div>'
    limit = next((stage for stage in contents.stages if stage.name == contents.bottleneck), None)
    if limit:
        yield f'<p><span class="limit">The limit: {words.plain(limit.name)}.</span> What helps: {words.plain(limit.remedy)}.</p>'
    background = " and ".join(
        f"{seconds:.1f}\u202fs to {words.plain(name)}" for name, seconds in contents.threads_seconds.items()
    )
    beside = f" Threads beside it took, added up, {background}." if background and limit else ""
    yield f'<p class="soft">{total:.1f}\u202fs of wall time, by what the main thread did or waited for.{beside}</p>'


def _causes(contents: Contents) -> Iterator[str]:
    for cause in contents.causes:
        yield _cause(cause)
    if contents.skipped:
        skipped = ", ".join(f"{words.count(number)} {words.plain(reason)}" for reason, number in sorted(contents.skipped.items()))
        yield f'<p class="soft">Passed over while listing: {skipped}.</p>'


def _cause(cause: Cause) -> str:
    left = cause.count - len(cause.examples)
    items = "".join(f"<li>{words.name(key)} <span>{words.name(error)}</span></li>" for key, error in cause.examples)
    if left and cause.examples:
        items += f"<li><span>and {words.count(left)} more; all are in /images/error of features.h5</span></li>"
    return f'<h3>{words.count(cause.count)} {words.plain(cause.word)}</h3><ul class="names">{items}</ul>'


def _options(contents: Contents) -> Iterator[str]:
    if contents.command:
        yield f"<pre>{words.plain(contents.command, 10 * LONGEST_OPTION)}</pre>"
    if contents.changed:
        lines = "".join(
            f"<tr><td>{words.plain(name)}</td><td>{words.name(value, LONGEST_OPTION)}</td>"
            f"<td class='soft'>{words.name(default)}</td></tr>"
            for name, (value, default) in contents.changed.items()
        )
        yield f"<table><thead><tr><th>option</th><th>value</th><th>default</th></tr></thead><tbody>{lines}</tbody></table>"
    if contents.unchanged:
        items = "".join(
            f"<li>{words.plain(name)} <span>{words.name(value)}</span></li>" for name, value in contents.unchanged.items()
        )
        yield f'<p class="soft" style="margin-top:14px">As by default:</p><ul class="options">{items}</ul>'
    lines = "".join(
        f"<tr><th scope='row'>{words.plain(name)}</th><td>{words.name(text, LONGEST_OPTION)}</td></tr>"
        for name, text in contents.facts.items()
    )
    yield f"<table><tbody>{lines}</tbody></table>"
    versions = ", ".join(f"{words.plain(name)} {words.plain(text)}" for name, text in contents.versions.items())
    yield f'<p class="soft" style="margin-top:10px">Versions: {versions}.</p>'
