/* exported listNearest */
/* global words, ones, escaped, counted, mark */

/**
 * Lists in a panel the codes nearest to the point that was clicked, and marks their points; a click beside all points
 * brings the hint back. Pictures are cut from sheets, `columns` a row, `ratio` times as high as they are wide.
 */
function listNearest({ source, marks, panel, hint, ratio, columns, nearest }) {
  const data = source.data
  const picked = source.selected.indices
  if (!picked.length) {
    panel.text = hint
    mark(marks, data, [])
    return
  }

  const clicked = picked[0] // of several under the pointer the one its tooltip shows
  const mine = words(data.code[clicked])
  const distance = (code) => words(code).reduce((sum, word, i) => sum + ones(word ^ mine[i]), 0)
  const others = data.code
    .map((code, row) => ({ row, away: distance(code) }))
    .filter((other) => other.row != clicked)
    .sort((a, b) => a.away - b.away || a.row - b.row)
  const near = others.slice(0, nearest)
  const same = others.filter((other) => !other.away).length

  const picture = (row, width) => {
    const height = width * ratio
    const place = `${-data.across[row] * width}px ${-data.down[row] * height}px / ${columns * width}px auto`
    const style =
      `flex: none; width: ${width}px; height: ${height}px; border: 2px solid ${data.own[row]}; ` +
      `background: var(--sheet${data.sheet[row]}) ${place}; image-rendering: pixelated`
    return `<div role="img" aria-label="${escaped(data.label[row])}" style="${style}"></div>`
  }
  const line = (row, note) =>
    `<div style="display: flex; gap: 0.6em; align-items: center; margin: 0.35em 0">${picture(row, 44)}` +
    `<div style="min-width: 0; overflow-wrap: anywhere"><b>${escaped(data.label[row])}</b> ${note}<br>` +
    `<code>0x${data.code[row]}</code><br><small>${escaped(data.name[row])}</small></div></div>`
  const lines = near.map(({ row, away }) => line(row, `${away} bit${away == 1 ? "" : "s"} away`))

  mark(marks, data, [clicked, ...near.map((other) => other.row)])
  panel.text =
    `<div style="font-size: 14px">${line(clicked, "")}` +
    (same ? `${counted(same)} other point${same == 1 ? " has" : "s have"} its code` : "") +
    `<hr><b>Nearest by Hamming distance</b>${lines.join("")}</div>`
}
