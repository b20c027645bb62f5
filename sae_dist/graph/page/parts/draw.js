// The picture: a canvas that changes when nodes are chosen, and one above it for what is pointed at.
const below = byId("below"), above = byId("above");
const pen = below.getContext("2d"), ink = above.getContext("2d");
const MOST_PIXELS = 1.6e7, OVERVIEW = 250, CURVES = 500;
let colours = {};

const font = (size) => `${size}px system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif`;

function readColours() {
  const style = getComputedStyle(document.documentElement);
  for (const name of ["paper", "card", "ink", "soft", "rule", "accent", "node", "plus", "minus", "found", "error"]) {
    colours[name] = style.getPropertyValue(`--${name}`).trim();
  }
  colours.groups = ["#0f8a8a", "#a2449b", "#8a7300", "#c2412f", "#4b62d1", "#4a8f2c", "#b0671c", "#66717c"];
}

function size(canvas, context) {
  const scale = Math.min(devicePixelRatio || 1, Math.sqrt(MOST_PIXELS / (L.width * L.height)));
  canvas.width = Math.max(1, Math.floor(L.width * scale));
  canvas.height = Math.max(1, Math.floor(L.height * scale));
  canvas.style.width = `${L.width}px`;
  canvas.style.height = `${L.height}px`;
  context.setTransform(scale, 0, 0, scale, 0, 0);
}

const radius = (k) => {
  if (G.kind[k] !== LATENT) return 4;
  return Math.min(2.6 + 22 * Math.sqrt(Math.max(G.share[k], 0) / 4), L.step * 0.46);
};

function cut(words, room, context) {
  if (context.measureText(words).width <= room) return words;
  let length = words.length;
  while (length > 1 && context.measureText(words.slice(0, length) + "…").width > room) length--;
  return words.slice(0, length) + "…";
}

function shape(context, k, r) {
  const x = L.x[k], y = L.y[k];
  context.beginPath();
  if (G.kind[k] === LATENT) context.arc(x, y, r, 0, 7);
  else if (G.kind[k] === ERROR) {
    context.moveTo(x, y - r - 1);
    context.lineTo(x + r + 1, y);
    context.lineTo(x, y + r + 1);
    context.lineTo(x - r - 1, y);
    context.closePath();
  } else if (G.kind[k] === TOKEN) context.rect(x - r, y - r, 2 * r, 2 * r);
  else context.roundRect(x - L.wide[k] / 2, y - PILL / 2, L.wide[k], PILL, PILL / 2);
}

function dot(context, k, strong) {
  const kind = G.kind[k], r = radius(k) + (strong ? 1.5 : 0), group = groupOf(k);
  shape(context, k, r);
  context.globalAlpha = 1;
  if (kind === LOGIT) {
    context.fillStyle = colours.card;
    context.fill();
    context.globalAlpha = 0.12 + 0.6 * Math.min(Math.max(G.probability[k], 0), 1);
    context.fillStyle = colours.accent;
    context.fill();
    context.globalAlpha = 1;
    context.strokeStyle = colours.accent;
    context.lineWidth = strong ? 2 : 1;
    context.stroke();
    context.font = font(12);
    context.fillStyle = colours.ink;
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.fillText(cut(G.words_at[k], L.wide[k] - 12, context), L.x[k], L.y[k] + 0.5);
  } else {
    context.fillStyle = group >= 0 ? colours.groups[group % colours.groups.length] : kind === LATENT ? colours.node : kind === ERROR ? colours.card : colours.soft;
    context.fill();
    context.lineWidth = 1;
    context.strokeStyle = kind === ERROR ? colours.error : colours.card;
    if (kind !== TOKEN) context.stroke();
  }
  if (S.pinned.includes(k)) {
    shape(context, k, r + 2.5);
    context.strokeStyle = colours.ink;
    context.lineWidth = 1.5;
    context.stroke();
  }
  if (S.found.has(k)) {
    shape(context, k, r + 4);
    context.strokeStyle = colours.found;
    context.lineWidth = 2;
    context.stroke();
  }
}

function curve(context, source, target) {
  const x0 = L.x[source], y0 = L.y[source], x1 = L.x[target], y1 = L.y[target], half = (y0 - y1) / 2;
  context.beginPath();
  context.moveTo(x0, y0);
  context.bezierCurveTo(x0, y0 - half, x1, y1 + half, x1, y1);
  context.stroke();
}

// The links that carry most to the logits, of all that are shown; found anew when what is shown changes.
function overview() {
  const best = [];
  let least = 0;
  for (let target = 0; target < G.count; target++) {
    if (!shown[target] || !G.size[target]) continue;
    const factor = reach(target) / G.size[target];
    for (let e = G.inputs.start[target]; e < G.inputs.start[target + 1]; e++) {
      const weight = Math.abs(G.inputs.weight[e]) * factor;
      if (weight <= least || !shown[G.inputs.node[e]]) continue;
      best.push([weight, G.inputs.node[e], target, G.inputs.weight[e]]);
      if (best.length >= 4 * OVERVIEW) {
        best.sort((a, b) => b[0] - a[0]).length = OVERVIEW;
        least = best[OVERVIEW - 1][0];
      }
    }
  }
  return best.sort((a, b) => b[0] - a[0]).slice(0, OVERVIEW);
}

function drawBelow() {
  size(below, pen);
  pen.clearRect(0, 0, L.width, L.height);
  pen.textBaseline = "middle";
  L.rows.forEach((row, n) => {
    if (n % 2 === 0) {
      pen.globalAlpha = 0.4;
      pen.fillStyle = colours.rule;
      pen.fillRect(0, row.from, L.width, row.tall);
      pen.globalAlpha = 1;
    }
  });
  pen.lineWidth = 1;
  pen.strokeStyle = colours.rule;
  for (const column of L.columns.slice(1)) {
    pen.beginPath();
    pen.moveTo(column.from, L.rows.length ? L.rows[0].from : 0);
    pen.lineTo(column.from, L.tokens);
    pen.stroke();
  }
  const lines = overview(), most = lines.length ? lines[0][0] : 1;
  for (const [weight, source, target, signed] of lines.reverse()) {
    pen.strokeStyle = signed > 0 ? colours.plus : colours.minus;
    pen.globalAlpha = 0.06 + 0.45 * Math.sqrt(weight / most);
    pen.lineWidth = 0.5 + 2 * Math.sqrt(weight / most);
    curve(pen, source, target);
  }
  pen.globalAlpha = 1;
  for (let k = 0; k < G.count; k++) if (shown[k]) dot(pen, k, false);
  tokenTexts();
  byId("layers").replaceChildren(...L.rows.map((row) => {
    const label = make("span", {}, `L${said.layers[row.layer]}`);
    label.style.top = `${row.from + row.tall / 2}px`;
    return label;
  }));
  drawAbove();
}

function tokenTexts() {
  pen.font = font(12);
  pen.fillStyle = colours.ink;
  said.tokens.forEach((words, p) => {
    const x = L.columns[p].from + L.columns[p].wide / 2, y = L.tokens + 10;
    pen.save();
    pen.translate(x, y);
    if (L.upright) {
      pen.rotate(-Math.PI / 2);
      pen.textAlign = "right";
      pen.textBaseline = "middle";
      pen.fillText(cut(words, TOKENS_TALL, pen), 0, 0);
    } else {
      pen.textAlign = "center";
      pen.textBaseline = "top";
      pen.fillText(words, 0, 0);
    }
    pen.restore();
  });
}

function drawAbove() {
  if (above.width !== below.width || above.height !== below.height) size(above, ink);
  ink.clearRect(0, 0, L.width, L.height);
  const k = active();
  if (k < 0) return;
  ink.globalAlpha = 0.72;
  ink.fillStyle = colours.card;
  ink.fillRect(0, 0, L.width, L.tokens - 6);
  ink.globalAlpha = 1;
  const near = new Set([k]);
  for (const side of [G.inputs, G.outputs]) {
    const lines = edgesOf(k, side).filter((each) => shown[each.other]).slice(0, Math.min(S.edges, CURVES));
    const most = Math.max(...lines.map((each) => Math.abs(each.share)), 1e-12);
    for (const each of lines.reverse()) {
      const [source, target] = side === G.inputs ? [each.other, k] : [k, each.other];
      ink.strokeStyle = each.weight > 0 ? colours.plus : colours.minus;
      ink.globalAlpha = 0.35 + 0.6 * Math.sqrt(Math.abs(each.share) / most);
      ink.lineWidth = 0.7 + 3 * Math.sqrt(Math.abs(each.share) / most);
      curve(ink, source, target);
      near.add(each.other);
    }
  }
  ink.globalAlpha = 1;
  for (const other of [...near, ...S.pinned, ...S.found]) if (shown[other]) dot(ink, other, other === k);
  shape(ink, k, radius(k) + 4);
  ink.strokeStyle = colours.ink;
  ink.lineWidth = 2;
  ink.stroke();
}
