"""Figures of the page, which can be hovered over: plain dicts in, Plotly's JSON out, with the colours left to the page.
"""
import html
import math
from typing import Any

from common.runtime.console import text_width

COLOURS = ('#3b7dd8', '#e0772b', '#2f9e61', '#8a63c9')  # seen on white and on black
FEW_CLASSES = 30    # up to so many, the cells of a confusion matrix have numbers
LOWEST = 160        # pixels, of the cells of a confusion matrix
ROW = 12            # pixels of the row of a class among many, whose name has SMALL pixels
SMALL = 10
CHARACTER = 7       # pixels of a character of a name beside it
SLANT = 60          # degrees, of the names below it


def figure(traces: list[dict[str, Any]], height: int = 320, **layout: Any) -> str:
    """Return Plotly's JSON of traces (plotly.graph_objects) with a layout in which nothing has a colour of its own."""
    from plotly import graph_objects as go  # takes half a second

    axis = {'gridcolor': 'rgba(128,128,128,0.25)', 'zeroline': False, 'automargin': True}
    usual = {
        'template': 'none', 'paper_bgcolor': 'rgba(0,0,0,0)', 'plot_bgcolor': 'rgba(0,0,0,0)', 'height': height,
        'margin': {'l': 50, 'r': 15, 't': 30, 'b': 45}, 'colorway': COLOURS,
        'legend': {'orientation': 'h', 'y': 1.02, 'yanchor': 'bottom'}, 'hovermode': 'closest'}
    axes = {name: {**axis, **layout.get(name, {})} for name in ('xaxis', 'yaxis')}
    return go.Figure(traces, {**usual, **layout, **axes}).to_json()


def curves(rows: list[dict[str, Any]], columns: dict[str, str], ylabel: str, **axis: Any) -> str | None:
    """Return columns of the log over the epochs, {column: legend}; None where none of them has a value."""
    traces = []
    for column, legend in columns.items():
        drawn_rows = [row for row in rows if row.get(column) is not None]
        if drawn_rows:
            traces.append({
                'type': 'scatter', 'x': [row['epoch'] for row in drawn_rows],
                'y': [row[column] for row in drawn_rows], 'name': legend, 'showlegend': len(columns) > 1,
                'mode': 'lines+markers' if len(drawn_rows) < 40 else 'lines'})
    if not traces:
        return None
    epochs = {'title': 'epoch', 'tickformat': 'd', 'dtick': max(1, len(rows) // 10)}
    return figure(traces, xaxis=epochs, yaxis={'title': ylabel, **axis}, hovermode='x unified')


def confusion(matrix: list[list[int]], labels: list[str]) -> str:
    """Return the confusion matrix, rows: truth, with buttons for shares or counts and for the order of the classes.

    Every row has its name. Columns without room for all names leave some out, as Plotly does where it may choose.
    `labels` are short names of the classes, no two alike.
    """
    classes = [unmarked(label) for label in labels]
    shares = [[count / max(1, sum(row)) for count in row] for row in matrix]
    hover = []
    for counts_of_class, shares_of_class in zip(matrix, shares, strict=True):
        hover.append([f'{count} images, {share:.0%}'
                      for count, share in zip(counts_of_class, shares_of_class, strict=True)])
    few = len(classes) <= FEW_CLASSES
    cells = max(LOWEST, (26 if few else ROW) * len(classes))
    below = math.ceil(CHARACTER * math.sin(math.radians(SLANT)) * max(map(text_width, labels)))

    def heatmap(form: str, values: list[list], visible: bool) -> dict[str, Any]:
        trace = {
            'type': 'heatmap', 'z': shares, 'x': classes, 'y': classes, 'zmin': 0, 'zmax': 1, 'showscale': False,
            'colorscale': [[0, 'rgba(59,125,216,0.04)'], [1, 'rgba(59,125,216,0.8)']], 'visible': visible,
            'customdata': hover, 'hovertemplate': '%{y}<br>classified as %{x}<br>%{customdata}<extra></extra>'}
        if few:
            trace['text'] = [[format(value, form) if value else '' for value in row] for row in values]
            trace['texttemplate'] = '%{text}'
        return trace

    worst_first = [classes[i] for i in sorted(range(len(classes)), key=lambda i: shares[i][i])]
    numbers = {'shares': {'visible': [True, False]}, 'counts': {'visible': [False, True]}}
    orders = {'by name': class_order(classes), 'worst first': class_order(worst_first)}
    axis = {'type': 'category', 'categoryorder': 'array', 'categoryarray': classes, 'showgrid': False}
    if not few:
        axis['tickfont'] = {'size': SMALL}
    return figure(
        [heatmap('.0%', shares, visible=True), heatmap('d', matrix, visible=False)],
        height=cells + below + 140,  # with the buttons and the title of the axis
        xaxis={**axis, 'title': 'predicted', 'tickangle': -SLANT}, yaxis={**axis, 'autorange': 'reversed', 'dtick': 1},
        margin={'t': 60, 'l': 50, 'r': 15, 'b': 45}, updatemenus=[
            buttons(0, 'restyle', numbers), buttons(0.45, 'relayout', orders)])


def unmarked(name: str) -> str:
    """Return a text in which Plotly finds neither tags nor formulas."""
    return html.escape(name).replace('$', '&#36;')


def class_order(classes: list[str]) -> dict[str, list[str]]:
    """Return the change of a layout that puts the classes into an order on both axes."""
    return {'xaxis.categoryarray': classes, 'yaxis.categoryarray': classes}


def buttons(x: float, method: str, changes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return a row of buttons above a figure, {label: change that Plotly's `method` makes}."""
    return {'type': 'buttons', 'direction': 'right', 'x': x, 'xanchor': 'left', 'y': 1.01, 'yanchor': 'bottom',
            'pad': {'t': 0}, 'bgcolor': '#d5dbe3', 'borderwidth': 0, 'font': {'color': '#1d2430'},
            'buttons': [{'label': label, 'method': method, 'args': [change]} for label, change in changes.items()]}


def reliability(found: dict[str, list]) -> str:
    """Return the accuracy of images over their confidence: on the diagonal both agree."""
    filled = [place for place, count in enumerate(found['count']) if count]
    counts = [found['count'][place] for place in filled]
    sizes = [6 + 20 * (count / max(counts)) ** 0.5 for count in counts]
    diagonal = {
        'type': 'scatter', 'x': [0, 1], 'y': [0, 1], 'mode': 'lines', 'line': {'dash': 'dot', 'color': 'grey'},
        'name': 'confidence = accuracy', 'hoverinfo': 'skip'}
    points = {
        'type': 'scatter', 'x': [found['confidence'][place] for place in filled],
        'y': [found['accuracy'][place] for place in filled], 'mode': 'lines+markers',
        'name': 'images of that confidence', 'customdata': counts, 'marker': {'size': sizes},
        'hovertemplate': '%{customdata} images<br>confidence %{x:.1%}<br>accuracy %{y:.1%}<extra></extra>'}
    return figure([diagonal, points],
                  xaxis={'title': 'confidence', 'range': [0, 1.03], 'tickformat': '.0%'},
                  yaxis={'title': 'accuracy', 'range': [0, 1.05], 'tickformat': '.0%'})


def answered(found: dict[str, list]) -> str:
    """Return the accuracy of the answers over the share of images that get one, for each UNKNOWN_BELOW."""
    line = {
        'type': 'scatter', 'x': found['answered'], 'y': found['accuracy'], 'mode': 'lines',
        'customdata': found['certainty'], 'name': 'accuracy', 'hovertemplate':
            'UNKNOWN_BELOW = %{customdata:.2f}<br>%{x:.1%} answered<br>%{y:.1%} of the answers right<extra></extra>'}
    return figure([line],
                  xaxis={'title': 'share of images answered', 'range': [0, 1.02], 'tickformat': '.0%'},
                  yaxis={'title': 'accuracy of the answers', 'tickformat': '.0%'})
