/* exported findPoints */
/* global colour, counted, mark */

/** Leaves the points of a class, a code or a file in their colours, draws them over all others, and says how many. */
function findPoints({ source, over, box, said, bits }) {
  const data = source.data
  const quiet = colour("--line") // pale, for many faint ones on a heap would be strong again
  const wanted = box.value_input.trim().toLowerCase()
  const rows = [...data.code.keys()]

  const ones_and_zeros = wanted.replace(/^0b/, "").replaceAll("_", "")
  const binary = /^[01]+$/.test(ones_and_zeros) && ones_and_zeros.length == bits
  const digits = wanted.replace(/^0x/, "").replaceAll("_", "")
  const whole = data.code[0].length
  const prefix = binary ? BigInt(`0b${ones_and_zeros}`).toString(16).padStart(whole, "0") : digits

  // the first of these that finds anything counts
  const tests = [(row) => data.label[row].toLowerCase() == wanted]
  if (binary || wanted.startsWith("0x") || digits.length == whole) {
    tests.push((row) => prefix && data.code[row].startsWith(prefix))
  }
  if (!wanted.startsWith("0x")) {
    tests.push((row) => data.label[row].toLowerCase().includes(wanted))
    tests.push((row) => data.name[row].toLowerCase().includes(wanted))
  }
  const hits = wanted ? (tests.map((test) => rows.filter(test)).find((found) => found.length) ?? []) : []

  const found = new Set(hits)
  data.colour = rows.map((row) => (!wanted || found.has(row) ? data.own[row] : quiet))
  mark(over, data, hits)
  source.change.emit()
  if (!wanted) said.text = ""
  else if (hits.length) said.text = `${counted(hits.length)} of ${counted(data.code.length)} points`
  else said.text = `nothing found; search for a class, a file, or a code such as 0x${data.code[0]}`
}
