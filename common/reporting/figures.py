"""Figures of the page, which can be hovered over: plain dicts in, Plotly's JSON out, with the colours left to the page.
"""
from typing import Any

COLOURS = ('#3b7dd8', '#e0772b', '#2f9e61', '#8a63c9')  # seen on white and on black


def figure(traces: list, height: int = 320, **layout: Any) -> str:
    """Plotly's JSON of traces (plotly.graph_objects) with a layout in which nothing has a colour of its own."""
    from plotly import graph_objects as go  # takes half a second

    axes = {'gridcolor': 'rgba(128,128,128,0.25)', 'zeroline': False, 'automargin': True}
    for name in ('xaxis', 'yaxis'):
        layout[name] = axes | layout.get(name, {})
    return go.Figure(traces, {
        'template': 'none', 'paper_bgcolor': 'rgba(0,0,0,0)', 'plot_bgcolor': 'rgba(0,0,0,0)', 'height': height,
        'margin': {'l': 50, 'r': 15, 't': 30, 'b': 45}, 'colorway': COLOURS,
        'legend': {'orientation': 'h', 'y': 1.02, 'yanchor': 'bottom'}, 'hovermode': 'closest', **layout}).to_json()


def curves(rows: list[dict], columns: dict[str, str], ylabel: str, **axis: Any) -> str | None:
    """Columns of the log over the epochs, {column: legend}; None where none of them has a value."""
    traces = []
    for column, legend in columns.items():
        points = [(row['epoch'], row[column]) for row in rows if row.get(column) is not None]
        if points:
            x, y = zip(*points, strict=True)
            traces.append({'type': 'scatter', 'x': x, 'y': y, 'name': legend, 'showlegend': len(columns) > 1,
                           'mode': 'lines+markers' if len(x) < 40 else 'lines'})
    if not traces:
        return None
    epochs = {'title': 'epoch', 'tickformat': 'd', 'dtick': max(1, len(rows) // 10)}
    return figure(traces, xaxis=epochs, yaxis={'title': ylabel, **axis}, hovermode='x unified')


def confusion(matrix: list[list[int]], classes: list[str]) -> str:
    """The confusion matrix, rows: truth, as shares or counts, in the order of the names or the worst class first."""
    shares = [[count / max(1, sum(row)) for count in row] for row in matrix]
    hover = [[f'{count} pictures, {share:.0%}' for count, share in zip(*rows, strict=True)]
             for rows in zip(matrix, shares, strict=True)]
    few = len(classes) <= 30

    def heatmap(form: str, values: list[list]) -> dict:
        texts = [[format(value, form) if value else '' for value in row] for row in values]
        return {'type': 'heatmap', 'z': shares, 'x': classes, 'y': classes, 'zmin': 0, 'zmax': 1, 'showscale': False,
                'colorscale': [[0, 'rgba(59,125,216,0.04)'], [1, 'rgba(59,125,216,0.8)']], 'visible': values is shares,
                'customdata': hover, 'hovertemplate': '%{y}<br>named %{x}<br>%{customdata}<extra></extra>',
                **({'text': texts, 'texttemplate': '%{text}'} if few else {})}

    def buttons(x: float, method: str, choices: dict[str, dict]) -> dict:
        return {'type': 'buttons', 'direction': 'right', 'x': x, 'xanchor': 'left', 'y': 1.01, 'yanchor': 'bottom',
                'pad': {'t': 0}, 'bgcolor': '#d5dbe3', 'borderwidth': 0, 'font': {'color': '#1d2430'},
                'buttons': [{'label': label, 'method': method, 'args': [change]} for label, change in choices.items()]}

    worst_first = [classes[i] for i in sorted(range(len(classes)), key=lambda i: shares[i][i])]
    orders = {label: {f'{axis}.categoryarray': names for axis in ('xaxis', 'yaxis')}
              for label, names in (('by name', classes), ('worst first', worst_first))}
    axis = {'type': 'category', 'categoryorder': 'array', 'categoryarray': classes, 'showgrid': False}
    return figure(
        [heatmap('.0%', shares), heatmap('d', matrix)], height=min(1400, 240 + (26 if few else 12) * len(classes)),
        xaxis={**axis, 'title': 'named', 'tickangle': -60}, yaxis={**axis, 'autorange': 'reversed'},
        margin={'t': 60, 'l': 50, 'r': 15, 'b': 45}, updatemenus=[
            buttons(0, 'restyle', {'shares': {'visible': [True, False]}, 'counts': {'visible': [False, True]}}),
            buttons(0.45, 'relayout', orders)])


def reliability(found: dict[str, list]) -> str:
    """The accuracy of pictures over their confidence: on the diagonal both agree."""
    x, y, counts = zip(*[item for item in zip(found['confidence'], found['accuracy'], found['count'], strict=True)
                         if item[2]], strict=True)
    return figure([
        {'type': 'scatter', 'x': [0, 1], 'y': [0, 1], 'mode': 'lines', 'line': {'dash': 'dot', 'color': 'grey'},
         'name': 'confidence = accuracy', 'hoverinfo': 'skip'},
        {'type': 'scatter', 'x': x, 'y': y, 'mode': 'lines+markers', 'name': 'pictures of that confidence',
         'customdata': counts, 'marker': {'size': [6 + 20 * (count / max(counts)) ** 0.5 for count in counts]},
         'hovertemplate': '%{customdata} pictures<br>confidence %{x:.1%}<br>accuracy %{y:.1%}<extra></extra>'}],
        xaxis={'title': 'confidence', 'range': [0, 1.03], 'tickformat': '.0%'},
        yaxis={'title': 'accuracy', 'range': [0, 1.05], 'tickformat': '.0%'})


def answered(found: dict[str, list]) -> str:
    """The accuracy of the pictures that are answered over their share, for each UNKNOWN_BELOW."""
    return figure([
        {'type': 'scatter', 'x': found['answered'], 'y': found['accuracy'], 'mode': 'lines',
         'customdata': found['certainty'], 'name': 'accuracy', 'hovertemplate':
             'UNKNOWN_BELOW = %{customdata:.2f}<br>%{x:.1%} answered<br>of those %{y:.1%} right<extra></extra>'}],
        xaxis={'title': 'share of pictures answered', 'range': [0, 1.02], 'tickformat': '.0%'},
        yaxis={'title': 'accuracy of the answers', 'tickformat': '.0%'})
