/* exported followScheme */
/* global colour */

/** Draws what Bokeh draws in the colours of the page, and again where the reader comes to prefer others. */
function followScheme({ plot, points, names, box }) {
  const paint = () => {
    const [ground, ink, soft, line] = ["--card", "--ink", "--soft", "--line"].map(colour)
    Object.assign(plot, { background_fill_color: ground, border_fill_color: ground, outline_line_color: line })
    for (const legend of plot.right) {
      Object.assign(legend, { background_fill_color: ground, border_line_color: line })
      Object.assign(legend, { label_text_color: ink, title_text_color: soft })
    }
    Object.assign(names, { text_color: { value: ink }, background_fill_color: { value: ground } })
    points.nonselection_glyph.fill_color = { value: line }
    if (box.value_input) box.properties.value_input.change.emit() // what a search has left out
  }
  matchMedia("screen and (prefers-color-scheme: dark)").addEventListener("change", paint)
  paint()
}
