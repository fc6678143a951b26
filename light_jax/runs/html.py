"""Pieces of a page that stands alone: no request leaves it, and every text in it is escaped."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from light_llm.errors import UserError
from light_llm.files.given import open_regular
from light_llm.printing import printable

GENERATOR = "light-llm-jax"
OPENING = f'<!doctype html>\n<html lang="en"><head><meta name="generator" content="{GENERATOR}">'
"""How each page begins; what begins otherwise is not ours to replace."""
LONGEST = 4000
"""Characters of one text from a file."""

STYLE = """
:root{color-scheme:light dark;--page:#f6f7f9;--card:#fff;--text:#1b1f26;--dim:#646c79;
--line:#e4e7ec;--grid:#eceff3;--accent:#2563c9;--good:#1a7f4b;--bad:#b3372f;
--c1:#2563c9;--c2:#d9730d;--c3:#1a8a5a;--c4:#8a4fc7;--c5:#c2317a;--c6:#0f8a9d;--c7:#8a6d1d}
@media(prefers-color-scheme:dark){:root{--page:#101318;--card:#181c23;--text:#e4e8ee;--dim:#939cab;
--line:#2a303a;--grid:#232932;--accent:#74a7f7;--good:#58c48c;--bad:#f0837b;
--c1:#6ea3f7;--c2:#f0a052;--c3:#58c48c;--c4:#b78bf0;--c5:#f07db1;--c6:#4fc3d6;--c7:#d4b45c}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--text);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
font-variant-numeric:tabular-nums;-webkit-text-size-adjust:100%}
main{max-width:1080px;margin:0 auto;padding:28px 20px 48px}
h1{font-size:26px;line-height:1.25;margin:0;letter-spacing:-.01em;overflow-wrap:anywhere}
h2{font-size:17px;margin:36px 0 12px;letter-spacing:-.005em}
h3{font-size:14px;margin:0 0 8px;color:var(--dim);font-weight:600}
p{margin:0 0 8px}.dim,footer{color:var(--dim)}footer{margin-top:40px;font-size:13px}
header{display:flex;flex-wrap:wrap;align-items:baseline;gap:4px 14px}
.state{font-size:13px;font-weight:600;padding:2px 10px;border-radius:99px;white-space:nowrap;
border:1px solid currentColor;color:var(--dim)}
.state.running{color:var(--accent)}.state.finished{color:var(--good)}.state.failed{color:var(--bad)}
.bar{height:6px;border-radius:3px;background:var(--line);margin:16px 0 20px;overflow:hidden}
.bar i{display:block;height:100%;background:var(--accent);border-radius:3px}
.card,.chart{background:var(--card);border:1px solid var(--line);border-radius:10px;margin:0;
padding:14px 16px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(148px,1fr));gap:12px;
margin-bottom:12px}
.tiles .card{padding:12px 16px}.tiles span{display:block;color:var(--dim);font-size:13px}
.tiles b{display:block;font-size:22px;line-height:1.3;font-weight:600;letter-spacing:-.01em}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(300px,100%),1fr));gap:12px}
.chart.tall{grid-column:1/-1}
figcaption{display:flex;flex-wrap:wrap;justify-content:space-between;gap:0 16px;font-size:14px}
figcaption span{color:var(--dim);font-size:13px}figcaption data{color:var(--text);
font-weight:600}figcaption data+i{margin-left:12px}
.key{display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:6px}
.plot{position:relative;height:150px;margin:10px 4px 22px 50px;touch-action:pan-y}
.tall .plot{height:300px}
.plot svg{display:block;width:100%;height:100%;overflow:visible}
.plot polyline,.plot path{fill:none;vector-effect:non-scaling-stroke;stroke-linejoin:round}
.plot polyline{stroke-width:1.6}.tall .plot polyline{stroke-width:2}
.plot .faint{opacity:.35;stroke-width:1}.plot .dots{stroke-width:6;stroke-linecap:round}
.grid{stroke:var(--grid);stroke-width:1}
.y,.x{position:absolute;color:var(--dim);font-size:11.5px;line-height:1;white-space:nowrap}
.y{right:100%;margin-right:8px;transform:translateY(50%)}
.x{top:100%;margin-top:8px;transform:translateX(-50%)}
.cursor{position:absolute;top:0;bottom:0;width:1px;background:var(--dim);pointer-events:none}
.tip{position:absolute;z-index:1;top:4px;padding:5px 9px;border-radius:6px;font-size:12px;
line-height:1.45;background:var(--text);color:var(--card);pointer-events:none;white-space:pre}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:14px}
th{color:var(--dim);font-weight:500;font-size:13px;text-align:left}
th,td{padding:6px 24px 6px 0;border-bottom:1px solid var(--line);vertical-align:top}
.fixed td,td:first-child{white-space:nowrap}.wrap td+td{overflow-wrap:anywhere;min-width:6em}
tr:last-child td{border-bottom:0}.n{text-align:right;white-space:nowrap}
th:last-child,td:last-child{padding-right:0}
code,pre{font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:0 0 14px}pre:last-child{margin:0}
pre b{color:var(--accent);font-weight:600}
details{margin-top:10px}summary{cursor:pointer;color:var(--dim);font-size:14px}
details[open] summary{margin-bottom:8px}
.share{display:flex;height:10px;border-radius:5px;overflow:hidden;margin:4px 0 12px;gap:1px}
.share i{display:block;min-width:2px}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(380px,100%),1fr));gap:12px}
.c1{stroke:var(--c1)}.c2{stroke:var(--c2)}.c3{stroke:var(--c3)}.c4{stroke:var(--c4)}
.c5{stroke:var(--c5)}.c6{stroke:var(--c6)}.c7{stroke:var(--c7)}
i.c1{background:var(--c1)}i.c2{background:var(--c2)}i.c3{background:var(--c3)}
i.c4{background:var(--c4)}i.c5{background:var(--c5)}i.c6{background:var(--c6)}
i.c7{background:var(--c7)}
@media(max-width:600px){main{padding:18px 14px 36px}h1{font-size:21px}.tiles b{font-size:19px}
.tiles{grid-template-columns:repeat(2,1fr)}.tall .plot{height:220px}th,td{padding-right:12px}}
@media print{body{background:#fff}.card,.chart{break-inside:avoid}}
"""
COLOURS = 7  # of the style

# Values under the pointer. Without it the page lacks nothing else.
SCRIPT = """
for(const plot of document.querySelectorAll('.plot')){
const[x0,x1,y0,y1,log]=plot.dataset.scale.split(' ').map(Number);
const lines=[...plot.querySelectorAll('polyline:not(.faint)')].map(line=>({name:line.dataset.name,
at:line.getAttribute('points').split(' ').map(p=>p.split(',').map(Number))}));
const cursor=document.createElement('div'),tip=document.createElement('div');
cursor.className='cursor';tip.className='tip';
const leave=()=>{cursor.remove();tip.remove()};
plot.addEventListener('pointerleave',leave);
plot.addEventListener('pointermove',event=>{
const box=plot.getBoundingClientRect(),x=(event.clientX-box.left)/box.width*1000;
if(x<0||x>1000||!lines.length)return leave();
const near=lines.map(line=>({name:line.name,
p:line.at.reduce((a,b)=>Math.abs(b[0]-x)<Math.abs(a[0]-x)?b:a)}));
const at=near.reduce((a,b)=>Math.abs(b.p[0]-x)<Math.abs(a.p[0]-x)?b:a).p[0];
const text=v=>v!==0&&(Math.abs(v)<1e-3||Math.abs(v)>=1e6)?v.toExponential(3):
String(+v.toPrecision(5));
tip.textContent=[plot.dataset.x+' '+Math.round(x0+at/1000*(x1-x0)).toLocaleString('en'),
...near.map(({name,p})=>{const s=1-p[1]/1000;
return name+' '+text(log?y0*(y1/y0)**s:y0+s*(y1-y0))})].join('\\n');
cursor.style.left=at/10+'%';plot.append(cursor,tip);
tip.style.left=at<500?'calc('+at/10+'% + 10px)':'';
tip.style.right=at<500?'':'calc('+(100-at/10)+'% + 10px)'})}
"""


def text(value: object) -> str:
    """Any text, safe inside an element or an attribute: cut, control characters spelt out."""
    words = str(value)
    if len(words) > LONGEST:
        words = f"{words[:LONGEST]} … ({len(words) - LONGEST:,} characters more)"
    return escape(printable(words))


def page(title: str, body: str) -> str:
    """The whole document."""
    return (
        f'{OPENING}<meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="referrer" content="no-referrer">'
        f"<title>{text(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><main>\n{body}</main><script>{SCRIPT}</script></body></html>\n"
    )


def tile(name: str, value: str, below: str = "", *, key: str = "", number: object = None) -> str:
    """A number that stands out.

    Args:
        key: its name in metrics.jsonl, and `number` its value there, for programs.
    """
    data = f' data-key="{text(key)}" data-value="{text(repr(number))}"' if key else ""
    under = f"<span>{text(below)}</span>" if below else ""
    return f'<div class="card"><span>{text(name)}</span><b{data}>{text(value)}</b>{under}</div>'


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], numbers: str = "", *, wrap: bool = False
) -> str:
    """A table of cells that are HTML already.

    Args:
        head: column titles; none where they are empty.
        numbers: a letter a column, `n` where it holds numbers.
        wrap: long cells, but not the first of a row, go on in further lines; otherwise a table
            that is too wide for the screen scrolls.
    """
    kinds = [' class="n"' if kind == "n" else "" for kind in numbers.ljust(100)]

    def row(cells: Sequence[str], tag: str) -> str:
        told = (f"<{tag}{kind}>{cell}</{tag}>" for cell, kind in zip(cells, kinds, strict=False))
        return f"<tr>{''.join(told)}</tr>"

    top = f"<thead>{row([text(name) for name in head], 'th')}</thead>" if any(head) else ""
    body = "".join(row(cells, "td") for cells in rows)
    kind = "wrap" if wrap else "fixed"
    return f'<div class="scroll"><table class="{kind}">{top}<tbody>{body}</tbody></table></div>'


def card(content: str) -> str:
    return f'<div class="card">{content}</div>\n'


def section(title: str, content: str) -> str:
    """A heading and what belongs to it; nothing where there is nothing."""
    return f"<h2>{text(title)}</h2>\n{content}\n" if content else ""


def details(summary: str, content: str) -> str:
    """What is shown on a click."""
    return f"<details><summary>{text(summary)}</summary>{content}</details>"


def moment(seconds: float | None) -> str:
    """A time in UTC, to the minute."""
    if seconds is None:
        return "–"
    at = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return f'<time datetime="{at:%Y-%m-%dT%H:%M:%SZ}">{at:%Y-%m-%d %H:%M} UTC</time>'


def check_ours(path: Path) -> None:
    """Check that a page may be written: nothing is there, or an earlier page.

    Raises:
        UserError: something else is.
    """
    if not os.path.lexists(path):
        return
    opening = OPENING.encode()
    if not path.is_symlink() and path.is_file():
        with open_regular(path) as file:
            if file.read(len(opening)) == opening:
                return
    raise UserError(f"{path}: is no page of light-llm-jax, and stays as it is; move it away")
