// What clicks and searches share.
/* exported words, ones, escaped, mark, counted, colour */

/** The bits of a code, given in hex digits, as numbers of 32 bits each, the last bits first. */
function words(code) {
  const found = []
  for (let end = code.length; end > 0; end -= 8) found.push(parseInt(code.slice(Math.max(0, end - 8), end), 16))
  return found
}

/** How many of the 32 bits of a number are one. */
function ones(x) {
  x -= (x >>> 1) & 0x55555555
  x = (x & 0x33333333) + ((x >>> 2) & 0x33333333)
  return (((x + (x >>> 4)) & 0x0f0f0f0f) * 0x01010101) >>> 24
}

/** A text as it may stand anywhere in markup. */
function escaped(value) {
  return String(value).replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`)
}

/** A number as people write it. */
function counted(number) {
  return number.toLocaleString("en")
}

/** Draws rows of the points over all others, in their own colours. */
function mark(over, data, rows) {
  const columns = ["x", "y", "size", "marker", "own"]
  over.data = Object.fromEntries(columns.map((name) => [name, rows.map((row) => data[name][row])]))
}

/** A colour of the page, as the reader prefers it by now. */
function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim()
}
