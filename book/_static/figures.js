// Draws the interactive figures that tpgm.plots.interactive left in the page as JSON.
// plotly.js is fetched once, and only on pages that have such a figure.
(() => {
  "use strict";

  const root = document.documentElement;

  const colours = () => {
    const style = getComputedStyle(root);
    const read = (name, otherwise) => style.getPropertyValue(name).trim() || otherwise;
    return {
      text: read("--pst-color-text-base", "#222832"),
      background: read("--pst-color-background", "#ffffff"),
      surface: read("--pst-color-surface", "#f3f4f5"),
      lines: read("--pst-color-border", "#c9c9c9"),
    };
  };

  // the parts of a layout that depend on the theme, in plotly's dotted notation
  const themed = (layout) => {
    const c = colours();
    const update = {
      "font.color": c.text,
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      "legend.bgcolor": "rgba(0,0,0,0)",
      "hoverlabel.bgcolor": c.background,
      "hoverlabel.font.color": c.text,
    };
    for (const axis of Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key))) {
      for (const part of ["gridcolor", "linecolor", "zerolinecolor"]) update[`${axis}.${part}`] = c.lines;
    }
    for (const kind of ["sliders", "updatemenus"]) {
      (layout[kind] || []).forEach((_, i) => {
        update[`${kind}[${i}].bgcolor`] = c.surface;
        update[`${kind}[${i}].bordercolor`] = c.lines;
        update[`${kind}[${i}].font.color`] = c.text;
        if (kind === "sliders") update[`${kind}[${i}].tickcolor`] = c.text;
      });
    }
    return update;
  };

  const loadPlotly = () =>
    new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = `${root.dataset.content_root || "./"}_static/plotly.min.js`;
      script.onload = resolve;
      script.onerror = () => reject(new Error(`${script.src} could not be loaded`));
      document.head.append(script);
    });

  const draw = async (holder) => {
    const figure = JSON.parse(holder.querySelector("script").textContent);
    const plot = document.createElement("div");
    holder.replaceChildren(plot);
    const layout = { ...figure.layout, autosize: true, width: undefined };
    // one template for both themes: its own colours would fight the page's
    delete layout.template;
    layout.xaxis = layout.xaxis || {};
    layout.yaxis = layout.yaxis || {};
    layout.font = { ...layout.font, family: getComputedStyle(document.body).fontFamily };
    // room for the axis title above a slider
    layout.sliders = layout.sliders?.map((slider) => ({ pad: { t: 56 }, ...slider }));
    if (holder.clientWidth < 500) {
      layout.legend = { ...layout.legend, orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom" };
      layout.margin = { ...layout.margin, l: 56, r: 12 };
    }
    await Plotly.newPlot(plot, {
      data: figure.data,
      layout,
      frames: figure.frames,
      config: { responsive: true, displayModeBar: false },
    });
    await Plotly.relayout(plot, themed(layout));
    return { plot, layout };
  };

  const start = async () => {
    const holders = [...document.querySelectorAll(".tpgm-figure")];
    if (!holders.length) return;
    try {
      await loadPlotly();
      const drawn = await Promise.all(holders.map(draw));
      const follow = () => drawn.forEach(({ plot, layout }) => Plotly.relayout(plot, themed(layout)));
      new MutationObserver(follow).observe(root, { attributes: true, attributeFilter: ["data-theme"] });
    } catch (error) {
      holders.forEach((holder) => holder.append(`The figure could not be drawn: ${error.message}`));
    }
  };

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
