"""Appearance: Gradio's base theme with system fonts, and additional CSS. Loads no external resources."""

import gradio as gr

from serve.app import empty, outdated

FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")


def theme() -> gr.themes.Base:
    """The theme, with light and dark mode."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.blue,
        secondary_hue=gr.themes.colors.blue,
        neutral_hue=gr.themes.colors.slate,
        font=FONTS,
        font_mono=MONO,
        radius_size=gr.themes.sizes.radius_md,
    ).set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_700",
        button_primary_text_color="white",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_label_text_color="*neutral_600",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_200",
    )


CSS = (
    outdated.STYLE
    + empty.STYLE
    + """
.gradio-container { width: 100% !important; max-width: 1180px !important; margin: 0 auto !important; }
.gradio-container main { width: 100% !important; }
.gradio-container :is(main, .wrap, .contain, .column, .block, .html-container, .prose) {
  min-width: 0; max-width: 100%; }
.message:not(:has(.notice)) { display: none !important; }
#next { align-self: center !important; margin: .6rem; white-space: nowrap; }
.row:has(> #next) { background: var(--block-background-fill) !important; }
.finding { font-weight: 600; color: var(--body-text-color); margin: .6rem .2rem; }
.side-title { font-weight: 600; margin: .2rem; color: var(--body-text-color); }
.side-text { margin: .2rem; color: var(--body-text-color-subdued); overflow-wrap: anywhere; font-size: .9rem;
  max-height: 6.5rem; overflow-y: auto; }
.app-title h1 { font-size: 1.35rem; margin: .2rem 0; }
.app-title p, .hint { color: var(--body-text-color-subdued); margin: .15rem 0; font-size: .92rem; line-height: 1.45; }
.hint { border-left: 3px solid var(--border-color-primary); padding-left: .6rem; max-width: 78ch; }
#model-facts { background: var(--block-background-fill); padding: .1rem 1rem .5rem !important; }
.fact { color: var(--body-text-color-subdued); margin: 0; font-size: .9rem; line-height: 1.45;
  overflow-wrap: anywhere; }
.empty { color: var(--body-text-color-subdued); padding: 1.2rem .4rem; }
.of-think:has(#think-answer .busy) .waits-for-answer :is(.js-plotly-plot, .scroll, .finding),
.dims:has(.busy):not(:has(.dims .busy)) :is(.js-plotly-plot, .scroll, .finding) { opacity: .3; }
.busy:not(.answer) { position: fixed; left: 0; right: 0; bottom: 0; z-index: 60; margin: 0; padding: .7rem 1.2rem;
  background: var(--background-fill-secondary); border-top: 2px solid #2563eb; color: var(--body-text-color); }
details { margin: .3rem .2rem; color: var(--body-text-color); }
details summary { cursor: pointer; padding: .25rem 0; font-weight: 600; font-size: .92rem; }
.notice { border: 1px solid #b45309; border-left-width: 6px; border-radius: 6px; padding: .6rem .8rem; margin: .3rem 0;
  background: var(--background-fill-secondary); color: var(--body-text-color); overflow-wrap: anywhere; }
.answer { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: .7rem .9rem;
  background: var(--background-fill-secondary); color: var(--body-text-color); }
.answer p { margin: 0; } .answer .label { color: var(--body-text-color-subdued); font-size: .85rem; }
.answer .big { font-size: 1.35rem; font-weight: 600; overflow-wrap: anywhere; margin-bottom: .4rem; }
.answer .mark { color: var(--body-text-color); font-weight: 600; margin-left: .4rem; }
.answer pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; font-family: var(--font-mono);
  font-size: .9rem; background: none; color: inherit; }
.known { color: var(--body-text-color-subdued); font-size: .9rem; margin-top: .4rem !important; }
.scroll { overflow-x: auto; max-width: 100%; contain: inline-size; }
.scroll:focus-visible { outline: 2px solid #3b82f6; outline-offset: 2px; }
.scroll table { border-collapse: collapse; width: 100%; font-size: .9rem; color: var(--body-text-color); }
.scroll :is(table, thead, tbody, tr) { border: 0 !important; }
.scroll caption { text-align: left; font-weight: 600; padding: .3rem 0; }
.scroll caption span { display: inline-block; position: sticky; left: 0; max-width: min(100%, calc(100vw - 6rem)); }
.scroll th, .scroll td { text-align: left; padding: .32rem .6rem .32rem 0; vertical-align: top; white-space: pre-wrap;
  border: 0 !important; border-bottom: 1px solid var(--border-color-primary) !important; font-weight: 400;
  overflow-wrap: break-word; max-width: 26rem; }
.scroll thead th { color: var(--body-text-color-subdued); } .scroll tr.strong > * { font-weight: 650; }
.bar { display: block; color: var(--body-text-color); font-size: .9rem; }
.bar progress { display: block; width: 100%; height: .8rem; accent-color: #2563eb; margin-top: .25rem; }
a.file { display: inline-block; margin: .2rem .7rem .2rem 0; padding: .35rem .8rem; border-radius: 6px;
  border: 1px solid var(--border-color-primary); color: var(--link-text-color); text-decoration: underline; }
.graph > svg { width: 100%; height: auto; display: block; margin: 0 auto; --node: var(--background-fill-primary); }
.legend { --node: var(--background-fill-primary); }
.graph polyline { fill: none; stroke-linejoin: round; }
.graph polyline.edge { stroke: var(--body-text-color-subdued); stroke-width: 1; opacity: .7; }
.graph polyline.gold { stroke: var(--body-text-color); stroke-width: 3.2; }
.graph marker.edge path { fill: var(--body-text-color-subdued); }
.graph marker.gold path { fill: var(--body-text-color); }
.graph text { fill: var(--body-text-color); font-size: 12px; font-family: var(--font); }
.graph text.side { fill: var(--body-text-color-subdued); }
.graph text.value { font-weight: 700; }
.node path { stroke: var(--body-text-color); stroke-width: 1.6; stroke-linejoin: round; }
.node.apart path { stroke-dasharray: 3 2.5; }
.node .ring { fill: none; stroke: var(--body-text-color); stroke-width: 1.4; }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; font-size: .85rem; color: var(--body-text-color);
  padding: .4rem 0; }
.legend span { display: inline-flex; align-items: center; gap: .35rem; }
.legend i { display: inline-block; width: 90px; height: 12px; border-radius: 3px; }
.legend .thick { display: inline-block; width: 26px; border-top: 4px solid var(--body-text-color); }
.legend .thin { display: inline-block; width: 26px; border-top: 1px solid var(--body-text-color-subdued); }
.wide { overflow-x: auto; }
.dark .js-plotly-plot .infolayer :is(text, tspan),
.dark .js-plotly-plot :is(text.legendtext, text.xtitle, text.ytitle,
  .xaxislayer-above text, .yaxislayer-above text, text.cbtitle, .cbaxis text) { fill: #d4d4d8 !important; }
.js-plotly-plot .modebar-btn path { fill: #777 !important; }
button:focus-visible, a:focus-visible, input:focus-visible, textarea:focus-visible, [role=tab]:focus-visible {
  outline: 2px solid #3b82f6 !important; outline-offset: 2px; }
body:not(.dark) [role=tab][aria-selected=true] { color: #1d4ed8 !important; }
:is(#model, #other-model, #file, #pause) input { padding-right: 1.8rem; text-overflow: ellipsis; }
@media (max-width: 520px) {
  .gradio-container { padding: .5rem !important; } .gradio-container main { padding: .3rem !important; }
  .app-title h1 { font-size: 1.15rem; } .scroll th, .scroll td { padding-right: .45rem; }
  .scroll table { min-width: 34rem; } .wide .js-plotly-plot { min-width: 40rem; }
  .widest .js-plotly-plot { min-width: 56rem; }
  .figure > label { position: relative !important; }
}
@media (prefers-reduced-motion: reduce) { * { animation: none !important; transition: none !important; } }
"""
)
