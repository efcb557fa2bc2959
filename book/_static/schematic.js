// Makes the front page's schematic movable: weights and radii, by pointer and by arrow keys. Without it the drawing
// stands still as it is in the page.
(() => {
  "use strict";

  const FARTHEST = 56;
  const DATA_ANGLE = (150 * Math.PI) / 180;
  const set = (element, values) => Object.entries(values).forEach(([name, value]) => element.setAttribute(name, value));

  const movable = (group, svg) => {
    const part = (name) => group.querySelector(name);
    const [x, y] = [Number(group.dataset.x), Number(group.dataset.y)];
    const name = part("text").textContent;
    const moved = part(".moved");
    const [dx, dy] = [Number(moved.getAttribute("cx")) - x, Number(moved.getAttribute("cy")) - y];
    const state = { radius: Number(part(".ball").getAttribute("r")), far: Math.hypot(dx, dy), angle: Math.atan2(dy, dx) };
    const [note, number] = group.querySelectorAll(".ratio");
    const [weights, radius] = [part(".weights"), part(".radius")];

    const draw = () => {
      const ratio = state.far > state.radius ? state.radius / state.far : 1;
      const [cos, sin] = [Math.cos(state.angle), Math.sin(state.angle)];
      const [wx, wy] = [x + state.far * cos, y + state.far * sin];
      const [px, py] = [x + ratio * state.far * cos, y + ratio * state.far * sin];
      const [ux, uy] = [Math.cos(DATA_ANGLE), Math.sin(DATA_ANGLE)];
      const [hx, hy] = [x + state.radius * ux, y + state.radius * uy];
      set(part(".ball"), { r: state.radius });
      set(part(".train"), { x2: wx, y2: wy });
      const [mx, my] = [(wx + px) / 2 - 14 * sin, (wy + py) / 2 + 14 * cos];
      set(part(".back"), {
        d: `M${wx} ${wy}Q${mx} ${my} ${px} ${py}`,
        visibility: ratio < 1 ? "visible" : "hidden",
      });
      set(part(".kept"), { cx: px, cy: py });
      weights.querySelectorAll("circle").forEach((circle) => set(circle, { cx: wx, cy: wy }));
      set(radius.querySelector("circle"), { cx: hx, cy: hy });
      const [ax, ay] = [13 * ux, 13 * uy];
      set(part(".data"), { x1: hx - ax, y1: hy - ay, x2: hx + ax, y2: hy + ay });
      note.textContent = ratio < 1 ? "brought back" : "inside its ball";
      number.textContent = `ratio ${ratio.toFixed(2)}`;
      const said = `ratio ${ratio.toFixed(2)}: ${note.textContent}`;
      set(weights, { "aria-valuenow": Math.round(state.far), "aria-valuetext": said });
      set(radius, { "aria-valuenow": Math.round(state.radius), "aria-valuetext": said });
    };

    const handle = (element, label, what, follow) => {
      set(element, { tabindex: 0, role: "slider", "aria-label": `${name}: ${label}` });
      set(element, { "aria-valuemin": 2, "aria-valuemax": FARTHEST });
      element.addEventListener("keydown", (event) => {
        const way = { ArrowUp: 2, ArrowRight: 2, ArrowDown: -2, ArrowLeft: -2, PageUp: 10, PageDown: -10 }[event.key];
        const end = { Home: 2, End: FARTHEST }[event.key];
        if (way === undefined && end === undefined) return;
        event.preventDefault();
        state[what] = Math.min(FARTHEST, Math.max(2, end ?? state[what] + way));
        draw();
      });
      element.addEventListener("pointerdown", (event) => {
        element.setPointerCapture(event.pointerId);
        event.preventDefault();
        element.focus({ preventScroll: true });
      });
      element.addEventListener("pointermove", (event) => {
        if (!element.hasPointerCapture(event.pointerId)) return;
        const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
        follow(at.x - x, at.y - y);
        draw();
      });
    };

    const bounded = (length) => Math.min(FARTHEST, Math.max(2, length));
    handle(radius, "radius, set by validation data", "radius", (ax, ay) => {
      state.radius = bounded(Math.hypot(ax, ay));
    });
    handle(weights, "how far training moves the weights", "far", (ax, ay) => {
      state.far = bounded(Math.hypot(ax, ay));
      state.angle = Math.atan2(ay, ax);
    });
    draw();
  };

  const start = () => {
    const svg = document.getElementById("schematic");
    if (!svg) return;
    svg.classList.add("movable");
    svg.querySelectorAll(".layer").forEach((group) => movable(group, svg));
    document.querySelectorAll(".schematic-hint").forEach((hint) => hint.removeAttribute("hidden"));
  };

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
