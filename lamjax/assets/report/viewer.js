// Draws the structures of a report: turn by dragging or with the arrow keys; zoom by pinching, + and -, or the wheel
// once a picture was clicked; double click: as at first. The views of one structure turn together.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("structures").textContent);
  const START = multiply(turn(0, -1.35), spin(-0.35));

  function multiply(a, b) {
    return a.map((row) => [0, 1, 2].map((k) => row[0] * b[0][k] + row[1] * b[1][k] + row[2] * b[2][k]));
  }
  function turn(right, down) { // about the vertical, then about the horizontal of the screen
    const [a, b, c, d] = [Math.cos(right), Math.sin(right), Math.cos(down), Math.sin(down)];
    return multiply([[1, 0, 0], [0, c, -d], [0, d, c]], [[a, 0, b], [0, 1, 0], [-b, 0, a]]);
  }
  function spin(angle) { // about z
    const [c, s] = [Math.cos(angle), Math.sin(angle)];
    return [[c, -s, 0], [s, c, 0], [0, 0, 1]];
  }
  const apply = (r, x) => r.map((row) => row[0] * x[0] + row[1] * x[1] + row[2] * x[2]);
  const minus = (a, b) => a.map((x, k) => x - b[k]);
  const distance = (a, b) => Math.hypot(...minus(a, b));

  function edges(cell, periodic) { // the twelve edges of the cell; of a chain or a slab those along its lattice vectors
    const corner = (i, j, k) => [0, 1, 2].map((m) => i * cell[0][m] + j * cell[1][m] + k * cell[2][m]);
    const found = [], ends = periodic.map((p) => (p ? [0, 1] : [0]));
    for (const i of ends[0]) for (const j of ends[1]) for (const k of ends[2]) {
      if (!i && periodic[0]) found.push([corner(0, j, k), corner(1, j, k)]);
      if (!j && periodic[1]) found.push([corner(i, 0, k), corner(i, 1, k)]);
      if (!k && periodic[2]) found.push([corner(i, j, 0), corner(i, j, 1)]);
    }
    return found;
  }
  function bonds(view) { // pairs of atoms that are about as near as the sum of their covalent radii
    const found = [], { positions: x, symbols: s } = view;
    if (x.length > 900) return found;
    for (let i = 0; i < x.length; i++) for (let j = 0; j < i; j++) {
      const reach = 1.2 * (data.elements[s[i]].radius + data.elements[s[j]].radius);
      if (Math.abs(x[i][0] - x[j][0]) < reach && distance(x[i], x[j]) < reach) found.push([i, j]);
    }
    return found;
  }
  function shade(color, light, fog, back) { // a colour made lighter or darker, and faded into the background
    return "rgb(" + color.map((c, k) => {
      const lit = light > 0 ? c + (255 - c) * light : c * (1 + light);
      return Math.round(lit + (back[k] - lit) * fog);
    }).join(",") + ")";
  }
  const number = (text) => [1, 3, 5].map((k) => parseInt(text.trim().slice(k, k + 2), 16));
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);

  function draw(canvas, view, state) {
    const width = canvas.clientWidth, height = canvas.clientHeight, ratio = window.devicePixelRatio || 1;
    if (!width) return;
    canvas.width = width * ratio; canvas.height = height * ratio;
    const pen = canvas.getContext("2d"), back = number(style("--card"));
    pen.scale(ratio, ratio);
    const scale = state.zoom * 0.47 * Math.min(width, height) / state.size;
    const place = (x) => { const p = apply(state.rotation, minus(x, view.middle)); return [width / 2 + scale * p[0], height / 2 - scale * p[1], p[2]]; };
    const fog = (z) => 0.5 * Math.min(1, Math.max(0, 0.5 - z / (2 * state.size)));
    pen.lineCap = "round";
    pen.strokeStyle = style("--faint"); pen.lineWidth = 1;
    for (const [a, b] of view.edges) { const [p, q] = [place(a), place(b)]; pen.beginPath(); pen.moveTo(p[0], p[1]); pen.lineTo(q[0], q[1]); pen.stroke(); }
    const at = view.positions.map(place), things = at.map((p, k) => [p[2], k, -1]);
    for (const [i, j] of view.bonds) things.push([(at[i][2] + at[j][2]) / 2 - 1e-3, i, j]);
    things.sort((a, b) => a[0] - b[0]); // the farthest first
    for (const [z, i, j] of things) {
      const [x, y] = at[i], element = data.elements[view.symbols[i]];
      if (j >= 0) { // each half of a bond in the colour of its atom
        const middle = [(x + at[j][0]) / 2, (y + at[j][1]) / 2];
        pen.lineWidth = Math.max(1.5, 0.2 * scale);
        for (const k of [i, j]) {
          pen.strokeStyle = shade(data.elements[view.symbols[k]].color, -0.18, fog(z), back);
          pen.beginPath(); pen.moveTo(at[k][0], at[k][1]); pen.lineTo(...middle); pen.stroke();
        }
        continue;
      }
      const r = Math.max(1.5, 0.5 * element.radius * scale), f = fog(z);
      const light = pen.createRadialGradient(x - 0.35 * r, y - 0.35 * r, 0.1 * r, x, y, r);
      light.addColorStop(0, shade(element.color, 0.75, f, back));
      light.addColorStop(0.45, shade(element.color, 0, f, back));
      light.addColorStop(1, shade(element.color, -0.45, f, back));
      pen.fillStyle = light;
      pen.beginPath(); pen.arc(x, y, r, 0, 2 * Math.PI); pen.fill();
      pen.strokeStyle = shade(element.color, -0.65, f, back); pen.lineWidth = 0.7; pen.stroke();
    }
  }

  function show(figure, views) {
    const canvases = [...figure.querySelectorAll("canvas")];
    for (const view of views) {
      view.edges = view.cell ? edges(view.cell, view.periodic) : [];
      view.bonds = bonds(view);
      const all = [...view.positions, ...view.edges.flat()];
      view.middle = [0, 1, 2].map((k) => (Math.min(...all.map((x) => x[k])) + Math.max(...all.map((x) => x[k]))) / 2);
      view.size = 0.8 + Math.max(...all.map((x) => distance(x, view.middle)));
    }
    const state = { rotation: START, zoom: 1, size: Math.max(...views.map((view) => view.size)) };
    const redraw = () => canvases.forEach((canvas, k) => draw(canvas, views[k], state));
    const rotate = (dx, dy) => { state.rotation = multiply(turn(dx / 120, dy / 120), state.rotation); redraw(); };
    const zoom = (factor) => { state.zoom = Math.min(8, Math.max(0.3, state.zoom * factor)); redraw(); };
    const keys = { ArrowLeft: [-12, 0], ArrowRight: [12, 0], ArrowUp: [0, -12], ArrowDown: [0, 12] };
    for (const canvas of canvases) {
      const fingers = new Map();
      const spread = () => { const [a, b] = [...fingers.values()]; return Math.max(1, distance(a, b)); };
      canvas.addEventListener("pointerdown", (e) => { canvas.setPointerCapture(e.pointerId); fingers.set(e.pointerId, [e.clientX, e.clientY]); });
      canvas.addEventListener("pointermove", (e) => {
        const old = fingers.get(e.pointerId);
        if (!old) return;
        const before = fingers.size === 2 ? spread() : 0;
        fingers.set(e.pointerId, [e.clientX, e.clientY]);
        if (fingers.size === 2) zoom(spread() / before); else rotate(e.clientX - old[0], e.clientY - old[1]);
      });
      for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, (e) => fingers.delete(e.pointerId));
      canvas.addEventListener("wheel", (e) => { if (document.activeElement === canvas) { e.preventDefault(); zoom(Math.exp(-e.deltaY / 500)); } }, { passive: false });
      canvas.addEventListener("dblclick", () => { Object.assign(state, { rotation: START, zoom: 1 }); redraw(); });
      canvas.addEventListener("keydown", (e) => {
        if (keys[e.key]) { e.preventDefault(); rotate(...keys[e.key]); }
        if (e.key === "+" || e.key === "-") zoom(e.key === "+" ? 1.15 : 1 / 1.15);
      });
      new ResizeObserver(redraw).observe(canvas);
    }
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
    redraw();
  }
  document.querySelectorAll("figure.pair").forEach((figure, k) => show(figure, data.pairs[k]));
})();
