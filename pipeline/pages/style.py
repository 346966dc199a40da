"""The looks of a page: one style sheet for the screen, light and dark, for a phone, and for paper. No fonts of others."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark;
  --paper: #fdfdfc; --card: #ffffff; --line: #e3e2de; --ink: #22262a; --soft: #63696f; --ground: #ecebe7; --bar: #2f7f8f;
  --strong: #b5541c; --warn: #fdf1e4; --warn-line: #e2b88c; --tile: 124px; --photo: 150px; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #15181b; --card: #1c2024; --line: #30353b; --ink: #e4e6e8; --soft: #9aa1a8; --ground: #2a2f34; --bar: #57a9b8;
  --strong: #e39255; --warn: #2d251b; --warn-line: #6d5233; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; padding: 28px 20px 48px; max-width: 1080px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 26px; line-height: 1.2; margin: 0 0 4px; font-weight: 650; }
h2 { font-size: 17px; margin: 40px 0 12px; padding-top: 14px; border-top: 1px solid var(--line); font-weight: 650; }
h3 { font-size: 15px; margin: 0; font-weight: 650; }
p { margin: 0 0 10px; }
.soft, figcaption, .none { color: var(--soft); }
.soft, .none { font-size: 13.5px; }
.warning { background: var(--warn); border: 1px solid var(--warn-line); border-radius: 6px; padding: 8px 12px; margin: 14px 0 0; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(190px, 1fr)); gap: 10px; margin: 20px 0 0; }
.figures div { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: 9px 12px; }
.figures dt { color: var(--soft); font-size: 13px; }
.figures dd { margin: 0; font-size: 19px; line-height: 1.3; font-weight: 600; font-variant-numeric: tabular-nums; }
.stages { display: grid; grid-template-columns: auto minmax(60px, 1fr) auto; gap: 5px 14px; align-items: center;
  grid-auto-flow: row dense; margin: 0 0 14px; }
.stages div { grid-column: 1; } .stages .number { grid-column: 3; } .stages svg { grid-column: 2; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.limit { color: var(--strong); font-weight: 600; }
svg { display: block; }
svg.strip { width: 100%; height: 12px; border-radius: 2px; }
svg .ground { fill: var(--ground); } svg .bar { fill: var(--bar); } svg .strong { fill: var(--strong); }
svg.histogram { width: 100%; height: auto; margin: 8px 0 4px; }
svg .axis { stroke: var(--line); fill: none; } svg text { fill: var(--soft); font-size: 11px; }
.layers { display: grid; grid-template-columns: repeat(auto-fill, minmax(290px, 1fr)); gap: 14px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: 12px 14px; break-inside: avoid; }
.card header { display: flex; justify-content: space-between; align-items: baseline; gap: 10px; }
.card dl { display: grid; grid-template-columns: auto 1fr; gap: 1px 12px; margin: 6px 0 0; font-size: 13.5px; }
.card dt { color: var(--soft); } .card dd { margin: 0; text-align: right; font-variant-numeric: tabular-nums; }
.sample { display: grid; grid-template-columns: var(--photo) minmax(0, 1fr); gap: 6px 18px; padding: 14px 0; }
.sample, .names li { break-inside: avoid; }
.sample + .sample { border-top: 1px solid var(--line); }
.sample .name { grid-column: 1 / -1; }
.photo { width: var(--photo); } .photo img { width: 100%; height: auto; display: block; border-radius: 3px; }
.photo p { border: 1px dashed var(--line); border-radius: 3px; padding: 10px; margin: 0; }
.maps { display: flex; flex-wrap: wrap; gap: 10px 22px; }
.maps > div > p { margin: 0 0 3px; font-size: 13.5px; }
.tiles { display: flex; gap: 8px; }
figure { margin: 0; width: var(--tile); } figcaption { font-size: 12px; line-height: 1.35; padding-top: 3px; }
.tiles img { width: 100%; height: auto; display: block; image-rendering: pixelated; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; }
th { text-align: left; font-weight: 600; color: var(--soft); }
th, td { padding: 3px 14px 3px 0; vertical-align: top; border-bottom: 1px solid var(--line); }
th, td { overflow-wrap: break-word; } td:nth-child(2) { overflow-wrap: anywhere; }
th, td:first-child, td:nth-child(3) { white-space: nowrap; }
.names { margin: 4px 0 16px; padding: 0; list-style: none; font-size: 13.5px; }
.names li { padding: 3px 0; border-bottom: 1px solid var(--line); }
.names span { color: var(--soft); }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: 10px 12px; margin: 0 0 14px;
  white-space: pre-wrap; font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.options { columns: 270px; column-gap: 28px; margin: 0 0 14px; padding: 0; list-style: none; font-size: 13.5px; }
.options li { padding: 1px 0; break-inside: avoid; } .options span { color: var(--soft); }
@media (max-width: 560px) {
  body { padding: 18px 14px 36px; } h1 { font-size: 22px; }
  .figures { grid-template-columns: 1fr 1fr; gap: 8px; } .figures dd { font-size: 17px; }
  .sample { grid-template-columns: minmax(0, 1fr); } .layers { grid-template-columns: minmax(0, 1fr); }
  .stages { grid-template-columns: minmax(0, 1fr) auto; gap: 3px 12px; grid-auto-flow: row; }
  .stages .number { grid-column: 2; } .stages svg { grid-column: 1 / -1; margin-bottom: 7px; }
  :root { --tile: calc((100vw - 44px) / 3); } }
@media print { :root { color-scheme: light;
  --paper: #ffffff; --card: #ffffff; --line: #cfcfcb; --ink: #000000; --soft: #4d5257; --ground: #ecebe7; --bar: #2f7f8f;
  --strong: #a34712; --warn: #ffffff; --warn-line: #a34712; --tile: 74px; --photo: 100px; }
  body { padding: 0; max-width: none; font-size: 10.5pt; } h2, h2 + .soft { break-after: avoid; } p { break-inside: avoid; }
  svg, img { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  .figures { grid-template-columns: repeat(4, 1fr); } .figures dd { font-size: 15px; }
  .layers { grid-template-columns: repeat(2, 1fr); } .sample { padding: 10px 0; } figcaption { font-size: 10px; } }
@page { margin: 14mm; }
"""
