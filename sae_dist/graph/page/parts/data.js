// The graph as the page holds it: columns of nodes, links by target and by source.
const said = JSON.parse(document.getElementById("data").textContent);
const TOKEN = 0, LATENT = 1, ERROR = 2, LOGIT = 3;

const bytes = (text) => Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0)).buffer;

const G = (() => {
  const n = said.nodes, count = n.id.length;
  const inputs = {
    start: new Int32Array(bytes(said.edges.start)),
    node: new Int32Array(bytes(said.edges.source)),
    weight: new Float32Array(bytes(said.edges.weight)),
  };
  const edges = inputs.node.length;
  const outputs = { start: new Int32Array(count + 1), node: new Int32Array(edges), weight: new Float32Array(edges) };
  const size = new Float64Array(count);
  for (let e = 0; e < edges; e++) outputs.start[inputs.node[e] + 1]++;
  for (let k = 0; k < count; k++) outputs.start[k + 1] += outputs.start[k];
  const next = outputs.start.slice(0, count);
  for (let target = 0; target < count; target++) {
    for (let e = inputs.start[target]; e < inputs.start[target + 1]; e++) {
      const at = next[inputs.node[e]]++;
      outputs.node[at] = target;
      outputs.weight[at] = inputs.weight[e];
      size[target] += Math.abs(inputs.weight[e]);
    }
  }
  const place = new Map(n.id.map((id, k) => [id, k]));
  const words = n.id.map((_, k) => wordsOf(k));
  const searched = words.map((each, k) => {
    const layer = n.kind[k] === LATENT || n.kind[k] === ERROR ? `layer ${said.layers[n.layer[k]]} latent ${n.latent[k]}` : "";
    return `${each} ${layer} ${said.tokens[n.position[k]]} ${n.id[k]}`.toLowerCase();
  });
  const order = n.id.map((_, k) => k).filter((k) => n.kind[k] !== LOGIT);
  order.sort((a, b) => n.share[b] - n.share[a] || a - b);

  const logits = n.id.map((_, k) => k).filter((k) => n.kind[k] === LOGIT);

  function wordsOf(k) {
    if (n.kind[k] === TOKEN) return said.tokens[n.position[k]];
    if (n.kind[k] === LOGIT) return `${n.words[k]} ${percent(n.probability[k])}`;
    if (n.kind[k] === ERROR) return "error";
    return n.words[k] || `latent ${n.latent[k]}`;
  }
  return { ...n, count, inputs, outputs, size, place, words_at: words, searched, order, logits };
})();

// Where a node is, in words.
function placeOf(k) {
  const token = said.tokens[G.position[k]];
  const at = `position ${G.position[k]} “${token}”`;
  if (G.kind[k] === LATENT) return `layer ${said.layers[G.layer[k]]}, latent ${G.latent[k]}, ${at}`;
  if (G.kind[k] === ERROR) {
    const layer = said.layers[G.layer[k]];
    return said.bare[G.layer[k]] ? `all that layer ${layer} adds, since it has no transcoder, ${at}` : `what layer ${layer}'s latents do not explain, ${at}`;
  }
  return G.kind[k] === TOKEN ? `token at ${at}` : `logit after ${at}`;
}

// The links of a node on one side, the strongest first.
function edgesOf(k, side) {
  const found = [];
  for (let e = side.start[k]; e < side.start[k + 1]; e++) {
    const other = side.node[e], target = side === G.inputs ? k : other;
    const share = G.size[target] ? side.weight[e] / G.size[target] : 0;
    found.push({ other, weight: side.weight[e], share });
  }
  const matters = side === G.inputs ? (each) => Math.abs(each.weight) : (each) => Math.abs(each.share) * reach(each.other);
  return found.sort((a, b) => matters(b) - matters(a) || a.other - b.other);
}

// How much a node matters as a target.
function reach(k) {
  return G.share[k] || 0;
}

// The weight of the link from one node to another; 0: there is none.
function edgeWeight(source, target) {
  for (let e = G.inputs.start[target]; e < G.inputs.start[target + 1]; e++) {
    if (G.inputs.node[e] === source) return G.inputs.weight[e];
  }
  return 0;
}

function number(value, digits = 3) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const text = value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5) ? value.toExponential(1) : String(+value.toPrecision(digits));
  return text.replace("-", "−");
}

function percent(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const found = 100 * value;
  return `${found !== 0 && Math.abs(found) < 0.1 ? found.toPrecision(1) : found.toFixed(found && Math.abs(found) < 10 ? 1 : 0)} %`.replace("-", "−");
}

// An element with properties and children; text stays text.
function make(tag, properties = {}, ...children) {
  const found = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) found.addEventListener(name.slice(2), value);
    else if (name in found && name !== "list") found[name] = value;
    else found.setAttribute(name, value);
  }
  found.append(...children.filter((each) => each !== null && each !== undefined));
  return found;
}

const byId = (id) => document.getElementById(id);
