// What a reader has chosen; it is kept in the address, so that a link or a reload brings it back.
const LEAST_NODES = 12;
const S = { clicked: -1, hovered: -1, pinned: [], groups: [], nodes: said.shown, edges: 15, errors: true, found: new Set(), zoom: 1 };
const MOST_PINNED = 400, LONGEST_NAME = 80;
const visits = [];

const active = () => (S.hovered >= 0 ? S.hovered : S.clicked);
const groupOf = (k) => S.groups.findIndex((each) => each.nodes.includes(k));

// Nodes that are shown: tokens, logits, what is chosen, and those with the most influence.
let shown = new Uint8Array(G.count);
function choose() {
  shown = new Uint8Array(G.count);
  let left = S.nodes;
  for (const k of G.order) {
    if (G.kind[k] === TOKEN) shown[k] = 1;
    else if (G.kind[k] === ERROR ? S.errors && left > 0 : left > 0) {
      shown[k] = 1;
      left--;
    }
  }
  for (let k = 0; k < G.count; k++) if (G.kind[k] === LOGIT) shown[k] = 1;
  for (const k of S.pinned) shown[k] = 1;
  if (S.clicked >= 0) shown[S.clicked] = 1;
}

// What other pages of such graphs take: ids of pinned nodes, and of each group its name and ids.
function chosenAsJson() {
  return {
    pinnedIds: S.pinned.map((k) => G.id[k]),
    supernodes: S.groups.map((each) => [each.name, ...each.nodes.map((k) => G.id[k])]),
    linkType: "both",
    clickedId: S.clicked >= 0 ? G.id[S.clicked] : "",
    sg_pos: "",
  };
}

// Take over such a choice; what it names and is not here is left out. Returns how many ids were.
function takeOver(found) {
  const list = (value) => (Array.isArray(value) ? value : []);
  let missing = 0;
  const nodes = (ids) => {
    const own = [];
    for (const id of list(ids)) {
      const k = G.place.get(id);
      if (k === undefined) missing++;
      else if (!own.includes(k)) own.push(k);
    }
    return own;
  };
  const pinned = nodes(found.pinnedIds), groups = [], taken = new Set();
  for (const each of list(found.supernodes)) {
    const [name, ...ids] = list(each);
    const own = nodes(ids).filter((k) => !taken.has(k));
    own.forEach((k) => taken.add(k));
    if (own.length) groups.push({ name: String(name).slice(0, LONGEST_NAME), nodes: own });
  }
  S.groups = groups;
  S.pinned = [...new Set([...pinned, ...taken])].slice(0, MOST_PINNED);
  S.groups.forEach((each) => (each.nodes = each.nodes.filter((k) => S.pinned.includes(k))));
  S.groups = S.groups.filter((each) => each.nodes.length);
  const clicked = G.place.get(found.clickedId);
  S.clicked = clicked === undefined ? -1 : clicked;
  return missing;
}

function writeAddress() {
  const own = { ...chosenAsJson(), nodes: S.nodes, edges: S.edges, errors: S.errors };
  const empty = !own.pinnedIds.length && !own.clickedId && S.nodes === said.shown && S.edges === 15 && S.errors;
  history.replaceState(null, "", empty ? "#" : `#${encodeURIComponent(JSON.stringify(own))}`);
}

function readAddress() {
  if (location.hash.length < 2) return;
  let found = null;
  try {
    found = JSON.parse(decodeURIComponent(location.hash.slice(1)));
  } catch {
    return tell("The address says nothing that this page knows.");
  }
  if (found === null || typeof found !== "object") return;
  const missing = takeOver(found);
  const whole = (value, low, high, other) => (Number.isInteger(value) ? Math.min(Math.max(value, low), high) : other);
  S.nodes = whole(found.nodes, 1, G.count, S.nodes);
  S.edges = whole(found.edges, 1, 500, S.edges);
  S.errors = found.errors !== false;
  if (missing) tell(`${missing} nodes of the address are not in this graph.`);
}

let silence = 0;
function tell(words) {
  const note = byId("note");
  note.textContent = words;
  note.hidden = false;
  clearTimeout(silence);
  silence = setTimeout(() => (note.hidden = true), 4000);
}
