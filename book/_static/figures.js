// Draws the interactive figures that tpgm.plots.interactive left in the page as JSON.
// plotly.js is fetched once, when the first of them comes near the window; pages without one do not load this file.
(() => {
  "use strict";

  const root = document.documentElement;

  const colours = () => {
    const style = getComputedStyle(root);
    const read = (name, otherwise) => style.getPropertyValue(name).trim() || otherwise;
    return {
      text: read("--pst-color-text-base", "#222832"),
      background: read("--pst-color-background", "#ffffff"),
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
    return update;
  };

  let loading = null;
  const loadPlotly = () =>
    (loading ??= new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = `${root.dataset.content_root || "./"}_static/plotly.min.js`;
      script.onload = resolve;
      script.onerror = () => reject(new Error(`${script.src} could not be loaded`));
      document.head.append(script);
    }));

  const apply = (plot, step) => Plotly[step.method](plot, ...step.args);

  // the browser's own slider in the place of plotly's: reached by Tab, moved by arrow keys, read aloud
  const slider = (plot, { steps, active = 0, currentvalue = {} }) => {
    const [label, input, value] = ["label", "input", "output"].map((name) => document.createElement(name));
    const prefix = currentvalue.prefix || "";
    Object.assign(input, { type: "range", min: 0, max: steps.length - 1, step: 1, value: active });
    const say = () => {
      value.textContent = `${prefix}${steps[input.value].label}`;
      input.setAttribute("aria-valuetext", steps[input.value].label);
    };
    input.setAttribute("aria-label", prefix.replace(/\s*[=:]\s*$/, "") || "value");
    input.addEventListener("input", () => {
      apply(plot, steps[input.value]);
      say();
    });
    say();
    label.append(value, input);
    return label;
  };

  const choice = (plot, { buttons, active = 0 }) => {
    const group = document.createElement("div");
    group.setAttribute("role", "group");
    buttons.forEach((step, i) => {
      const button = document.createElement("button");
      Object.assign(button, { type: "button", textContent: step.label });
      button.setAttribute("aria-pressed", i === active);
      button.addEventListener("click", () => {
        apply(plot, step);
        for (const other of group.children) other.setAttribute("aria-pressed", other === button);
      });
      group.append(button);
    });
    return group;
  };

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
    const { sliders = [], updatemenus = [] } = layout;
    delete layout.sliders;
    delete layout.updatemenus;
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
    const follow = () => Plotly.relayout(plot, themed(layout));
    await follow();
    const controls = document.createElement("div");
    controls.className = "tpgm-controls";
    controls.append(...updatemenus.map((menu) => choice(plot, menu)), ...sliders.map((one) => slider(plot, one)));
    holder.append(controls);
    new MutationObserver(follow).observe(root, { attributes: true, attributeFilter: ["data-theme"] });
  };

  const start = () => {
    const near = new IntersectionObserver(
      (entries) =>
        entries
          .filter((entry) => entry.isIntersecting)
          .forEach(({ target }) => {
            near.unobserve(target);
            loadPlotly()
              .then(() => draw(target))
              .catch((error) => target.append(`The figure could not be drawn: ${error.message}`));
          }),
      { rootMargin: "600px" },
    );
    document.querySelectorAll(".tpgm-figure").forEach((holder) => near.observe(holder));
  };

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
