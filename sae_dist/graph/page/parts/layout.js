// Places of nodes: a column for each position, a row for each layer, tokens below and logits above.
const PAD = 10, TOKENS_TALL = 84, PILL = 22, GAP = 12, LEAST_TALL = 420;
const L = { x: new Float32Array(G.count), y: new Float32Array(G.count), wide: new Float32Array(G.count), columns: [], rows: [], width: 0, height: 0, upright: false };

function arrange(room) {
  const positions = said.tokens.length, layers = said.layers.length;
  const cells = new Map();
  for (const k of G.order) {
    if (!shown[k] || G.kind[k] === TOKEN) continue;
    const key = G.layer[k] * positions + G.position[k];
    if (!cells.has(key)) cells.set(key, []);
    cells.get(key).push(k);
  }
  const most = new Array(positions).fill(0);
  for (const [key, own] of cells) most[key % positions] = Math.max(most[key % positions], own.length);
  const least = positions > 60 ? 16 : 24;
  const sum = (all) => all.reduce((a, b) => a + b, 0);
  // Cells are wide where there is room, else they grow upwards, and dots come closer.
  let across = [], step = 15, widths = () => across.map((each) => Math.max(each * step + GAP, least));
  for (const flat of [1.8, 1.2, 0.8, 0.5]) {
    across = most.map((each) => Math.max(1, Math.ceil(Math.sqrt(flat * each))));
    for (step = 15; step > 9 && sum(widths()) > room - 2 * PAD; step -= 0.5);
    if (sum(widths()) <= room - 2 * PAD) break;
  }
  step *= S.zoom;
  let wide = widths();
  const spare = (room - 2 * PAD - sum(wide)) / positions;
  if (spare > 0) wide = wide.map((each) => each + spare);
  L.columns = [];
  let x = PAD;
  for (const each of wide) {
    L.columns.push({ from: x, wide: each });
    x += each;
  }
  L.width = Math.max(x + PAD, 1);
  L.step = step;

  const lines = new Array(layers).fill(1);
  for (const [key, own] of cells) {
    const layer = Math.floor(key / positions);
    lines[layer] = Math.max(lines[layer], Math.ceil(own.length / across[key % positions]));
  }
  // Few layers stand further apart, so that their links can be told.
  const apart = Math.min(Math.max((LEAST_TALL - sum(lines) * step) / Math.max(layers, 1), GAP), 70);
  let y = logits(PAD) + GAP;
  L.rows = [];
  for (let layer = layers - 1; layer >= 0; layer--) {
    const tall = lines[layer] * step + apart;
    L.rows.push({ layer, from: y, tall });
    for (let p = 0; p < positions; p++) spread(cells.get(layer * positions + p) || [], across[p], p, y + tall / 2, step);
    y += tall;
  }
  tokens(y);
  L.height = y + L.deep + 2 * GAP;
  index();
}

// Nodes of a cell in lines, each line centred, the most influential first.
function spread(own, across, position, middle, step) {
  const column = L.columns[position], lines = Math.ceil(own.length / across);
  own.forEach((k, place) => {
    const line = Math.floor(place / across), many = Math.min(across, own.length - line * across);
    L.x[k] = column.from + column.wide / 2 + ((place % across) - (many - 1) / 2) * step;
    L.y[k] = middle + (line - (lines - 1) / 2) * step;
  });
}

function tokens(y) {
  pen.font = font(12);
  const widest = Math.max(...said.tokens.map((each) => pen.measureText(each).width));
  L.upright = L.columns.some((column, p) => pen.measureText(said.tokens[p]).width > column.wide - 4) && widest > 14;
  L.tokens = y + GAP;
  L.deep = L.upright ? Math.min(widest, TOKENS_TALL) + 4 : 20;
  for (let k = 0; k < G.count; k++) {
    if (G.kind[k] !== TOKEN) continue;
    const column = L.columns[G.position[k]];
    L.x[k] = column.from + column.wide / 2;
    L.y[k] = y + GAP;
  }
}

// Logits stand at the right, above the last position, in as many lines as they need.
function logits(y) {
  pen.font = font(12);
  const own = [];
  for (let k = 0; k < G.count; k++) if (G.kind[k] === LOGIT) own.push(k);
  own.sort((a, b) => G.probability[b] - G.probability[a] || a - b);
  const lines = [[]];
  let used = 0;
  for (const k of own) {
    L.wide[k] = Math.min(pen.measureText(G.words_at[k]).width + 18, 180);
    if (used && used + L.wide[k] + 6 > L.width - 2 * PAD) {
      lines.push([]);
      used = 0;
    }
    lines[lines.length - 1].push(k);
    used += L.wide[k] + 6;
  }
  for (const line of lines) {
    let x = L.width - PAD - line.reduce((a, k) => a + L.wide[k] + 6, 0) + 6;
    for (const k of line) {
      L.x[k] = x + L.wide[k] / 2;
      L.y[k] = y + PILL / 2;
      x += L.wide[k] + 6;
    }
    y += PILL + 6;
  }
  return y;
}

// Buckets of the picture, so that the node under a finger is found without a look at all.
const BUCKET = 32;
let buckets = new Map();
function index() {
  buckets = new Map();
  for (let k = 0; k < G.count; k++) {
    if (!shown[k]) continue;
    const half = G.kind[k] === LOGIT ? L.wide[k] / 2 : 0;
    for (let x = Math.floor((L.x[k] - half) / BUCKET); x <= Math.floor((L.x[k] + half) / BUCKET); x++) {
      const key = `${x},${Math.floor(L.y[k] / BUCKET)}`;
      if (!buckets.has(key)) buckets.set(key, []);
      buckets.get(key).push(k);
    }
  }
}

function nodeAt(x, y, reachable) {
  let best = -1, least = reachable;
  const bx = Math.floor(x / BUCKET), by = Math.floor(y / BUCKET);
  for (let i = bx - 1; i <= bx + 1; i++) {
    for (let j = by - 1; j <= by + 1; j++) {
      for (const k of buckets.get(`${i},${j}`) || []) {
        const half = G.kind[k] === LOGIT ? L.wide[k] / 2 : 0;
        const away = Math.hypot(Math.max(Math.abs(L.x[k] - x) - half, 0), L.y[k] - y);
        if (away < least) [best, least] = [k, away];
      }
    }
  }
  if (best < 0 && y > L.tokens && y < L.tokens + TOKENS_TALL + GAP) {
    const p = L.columns.findIndex((each) => x >= each.from && x < each.from + each.wide);
    return G.position.findIndex((each, k) => G.kind[k] === TOKEN && each === p);
  }
  return best;
}

// The nearest node in a direction, those nearly straight ahead first.
function beside(k, dx, dy) {
  let best = -1, least = Infinity;
  for (let other = 0; other < G.count; other++) {
    if (!shown[other] || other === k) continue;
    const x = L.x[other] - L.x[k], y = L.y[other] - L.y[k];
    const ahead = x * dx + y * dy, aside = Math.abs(x * dy) + Math.abs(y * dx);
    if (ahead < 2) continue;
    const cost = ahead + 3 * aside;
    if (cost < least) [best, least] = [other, cost];
  }
  return best;
}
