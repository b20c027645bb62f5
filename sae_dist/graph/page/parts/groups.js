// Pinned nodes, groups of them made by hand, and the small picture of these alone.
const SVG = "http://www.w3.org/2000/svg";
const picked = new Set();

function draw(tag, properties, ...children) {
  const found = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) found.addEventListener(name.slice(2), value);
    else found.setAttribute(name, value);
  }
  found.append(...children);
  return found;
}

// What the small picture shows: groups, and pinned nodes that are in none.
function items() {
  const alone = S.pinned.filter((k) => groupOf(k) < 0);
  return [
    ...S.groups.map((each, place) => ({ name: each.name, nodes: each.nodes, group: place })),
    ...alone.map((k) => ({ name: G.words_at[k], nodes: [k], group: -1 })),
  ];
}

// The part of a target's inputs that comes from a source, both of one or more nodes. A target of several is
// weighed by influence.
function between(source, target) {
  let found = 0, whole = 0;
  for (const t of target.nodes) {
    const weight = Math.max(reach(t), 1e-9);
    whole += weight;
    if (!G.size[t]) continue;
    for (const s of source.nodes) found += (weight * edgeWeight(s, t)) / G.size[t];
  }
  return found / whole;
}

const level = (k) => (G.kind[k] === TOKEN ? -1 : G.kind[k] === LOGIT ? said.layers.length : G.layer[k]);
const mean = (all) => all.reduce((a, b) => a + b, 0) / all.length;

function subgraph() {
  const all = items(), wide = 150, tall = 34, across = 168, down = 74;
  const rows = new Map();
  for (const each of all) {
    each.level = Math.round(mean(each.nodes.map(level)));
    each.at = mean(each.nodes.map((k) => G.position[k]));
    if (!rows.has(each.level)) rows.set(each.level, []);
    rows.get(each.level).push(each);
  }
  const levels = [...rows.keys()].sort((a, b) => b - a);
  const most = Math.max(...[...rows.values()].map((row) => row.length));
  levels.forEach((key, line) => {
    const row = rows.get(key).sort((a, b) => a.at - b.at);
    row.forEach((each, place) => {
      each.x = (place + (most - row.length) / 2) * across + across / 2;
      each.y = line * down + 30;
    });
  });
  const width = Math.max(most * across, across), height = levels.length * down;
  const picture = draw("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": "Pinned nodes and the links between them" });
  const edges = [];
  for (const source of all) {
    for (const target of all) {
      if (source === target) continue;
      const share = between(source, target);
      if (Math.abs(share) > 1e-4) edges.push({ source, target, share });
    }
  }
  const top = Math.max(...edges.map((each) => Math.abs(each.share)), 1e-9);
  edges.sort((a, b) => Math.abs(a.share) - Math.abs(b.share));
  for (const { source, target, share } of edges) {
    const y0 = source.y - tall / 2, y1 = target.y + tall / 2, bend = Math.max(Math.abs(y0 - y1) / 2, 18);
    const line = draw("path", {
      d: `M${source.x},${y0} C${source.x},${y0 - bend} ${target.x},${y1 + bend} ${target.x},${y1}`,
      class: `edge ${share > 0 ? "plus" : "minus"}`,
      "stroke-width": (0.8 + 6 * Math.sqrt(Math.abs(share) / top)).toFixed(2),
      "stroke-opacity": (0.3 + 0.6 * Math.sqrt(Math.abs(share) / top)).toFixed(2),
    });
    const title = draw("title", {});
    title.textContent = `${source.name} to ${target.name}: ${percent(share)} of its inputs`;
    line.append(title);
    picture.append(line);
  }
  for (const each of all) {
    const box = draw("g", { class: "item", transform: `translate(${each.x - wide / 2},${each.y - tall / 2})`, onclick: () => hold(each.nodes[0]) });
    const frame = draw("rect", { width: wide, height: tall, rx: 8 });
    if (each.group >= 0) frame.style.stroke = colours.groups[each.group % colours.groups.length];
    const text = draw("text", { x: wide / 2, y: each.group >= 0 ? 14 : tall / 2 + 4 });
    pen.font = font(12);
    text.textContent = cut(each.name, wide - 14, pen);
    box.append(frame, text);
    if (each.group >= 0) {
      const many = draw("text", { x: wide / 2, y: 27, class: "many" });
      many.textContent = `${each.nodes.length} nodes`;
      box.append(many);
    }
    const title = draw("title", {});
    title.textContent = each.nodes.map(placeOf).slice(0, 12).join("\n");
    box.append(title);
    picture.append(box);
  }
  return picture;
}

function pinnedList() {
  const list = make("ol", { className: "nodes pinned" });
  S.groups.forEach((group, place) => {
    const name = make("input", { value: group.name, maxLength: LONGEST_NAME, "aria-label": "Name of the group" });
    name.addEventListener("change", () => {
      group.name = name.value.trim() || "group";
      changed();
    });
    const colour = make("span", { className: "swatch" });
    colour.style.background = colours.groups[place % colours.groups.length];
    const undo = make("button", { type: "button", onclick: () => (S.groups.splice(place, 1), changed()) }, "Ungroup");
    list.append(make("li", { className: "group" }, colour, name, undo));
    group.nodes.forEach((k) => list.append(pinnedRow(k, true)));
  });
  S.pinned.filter((k) => groupOf(k) < 0).forEach((k) => list.append(pinnedRow(k, false)));
  return list;
}

function pinnedRow(k, grouped) {
  const box = make("input", { type: "checkbox", checked: picked.has(k), "aria-label": `choose ${G.words_at[k]}` });
  box.addEventListener("change", () => (box.checked ? picked.add(k) : picked.delete(k), (byId("group").disabled = !picked.size)));
  const off = make("button", { type: "button", className: "quiet", "aria-label": `unpin ${G.words_at[k]}`, onclick: () => pin(k) }, "×");
  return make("li", { className: grouped ? "grouped" : "" }, box, nodeButton(k), make("small", {}, short(k)), off);
}

function group() {
  const nodes = [...picked].filter((k) => S.pinned.includes(k));
  if (!nodes.length) return tell("Choose pinned nodes first: the boxes beside them.");
  S.groups.forEach((each) => (each.nodes = each.nodes.filter((k) => !picked.has(k))));
  S.groups = S.groups.filter((each) => each.nodes.length);
  S.groups.push({ name: G.words_at[nodes[0]].slice(0, LONGEST_NAME), nodes });
  picked.clear();
  changed();
  const names = document.querySelectorAll("#list .group input");
  names[names.length - 1].select();
}

function pin(k) {
  if (k < 0) return;
  if (S.pinned.includes(k)) {
    S.pinned = S.pinned.filter((other) => other !== k);
    S.groups.forEach((each) => (each.nodes = each.nodes.filter((other) => other !== k)));
    S.groups = S.groups.filter((each) => each.nodes.length);
    picked.delete(k);
  } else if (S.pinned.length >= MOST_PINNED) return tell(`At most ${MOST_PINNED} nodes are pinned.`);
  else S.pinned.push(k);
  changed();
}

function showPinned() {
  byId("pinned").hidden = !S.pinned.length;
  byId("pinned-count").textContent = S.pinned.length ? `${S.pinned.length} pinned` : "";
  if (!S.pinned.length) return;
  byId("list").replaceChildren(pinnedList());
  byId("picture").replaceChildren(subgraph());
  byId("group").disabled = !picked.size;
}
