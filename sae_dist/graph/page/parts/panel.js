// What is known of the node in hand; without one, the nodes that matter most.
const FIRST_ROWS = 12;

function kindMark(k) {
  return make("span", { className: `mark ${["token", "latent", "error", "logit"][G.kind[k]]}`, "aria-hidden": "true" });
}

function nodeButton(k, words) {
  return make(
    "button",
    {
      type: "button",
      className: "node",
      title: `${G.id[k]}: ${placeOf(k)}`,
      onclick: () => hold(k),
      onpointerenter: () => hover(k),
      onpointerleave: () => hover(-1),
    },
    kindMark(k),
    make("span", { className: "words" }, words || G.words_at[k]),
  );
}

function signedBar(share, most) {
  const bar = make("span", { className: "bar" });
  const fill = make("i", { className: share > 0 ? "plus" : "minus" });
  fill.style.width = `${(100 * Math.min(Math.abs(share) / most, 1)).toFixed(1)}%`;
  bar.append(fill);
  return bar;
}

function edgeTable(k, side, title, hint) {
  const all = edgesOf(k, side), part = make("section", { className: "edges" }, make("h3", {}, `${title} (${all.length})`));
  if (!all.length) {
    part.append(make("p", { className: "hint" }, "none in this graph"));
    return part;
  }
  const most = Math.max(...all.map((each) => Math.abs(each.share)));
  const body = make("tbody");
  const rows = (from, to) => {
    for (const each of all.slice(from, to)) {
      body.append(
        make(
          "tr",
          { className: shown[each.other] ? "" : "hidden-node" },
          make("th", { scope: "row" }, nodeButton(each.other), make("small", {}, short(each.other))),
          make("td", { className: "barred" }, signedBar(each.share, most)),
          make("td", { className: "number" }, number(each.weight)),
          make("td", { className: "number soft" }, percent(each.share)),
        ),
      );
    }
  };
  rows(0, FIRST_ROWS);
  const table = make("table", {}, make("thead", {}, make("tr", {}, make("th", {}, ""), make("th"), make("th", { className: "number" }, "weight"), make("th", { className: "number" }, "share"))), body);
  part.append(table, make("p", { className: "hint" }, hint));
  if (all.length > FIRST_ROWS) {
    const more = make("button", { type: "button", className: "more" }, `${Math.min(all.length, 200) - FIRST_ROWS} more`);
    more.addEventListener("click", () => {
      rows(FIRST_ROWS, 200);
      more.remove();
    });
    part.append(more);
  }
  return part;
}

function short(k) {
  const token = said.tokens[G.position[k]];
  if (G.kind[k] === LATENT || G.kind[k] === ERROR) return `L${said.layers[G.layer[k]]} · ${G.position[k]} ${token}`;
  return G.kind[k] === LOGIT ? "logit" : `${G.position[k]} ${token}`;
}

function facts(rows) {
  return make("dl", { className: "facts" }, ...rows.filter((row) => row[1] !== "–").map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
}

function effects(title, rows) {
  if (!rows || !rows.length) return null;
  return make("div", {}, make("h4", {}, title), make("p", { className: "chips" }, ...rows.map(([token, by]) => make("code", { title: `${number(by)} per unit of code` }, token))));
}

// What a node adds to each logit along all paths, by the graph.
function totals(k) {
  const own = G.logits.map((logit, place) => ({ logit, by: G.total[k][place] })).filter((each) => each.by !== null);
  const most = Math.max(...own.map((each) => Math.abs(each.by)), 1e-12);
  const rows = own.map((each) => make("tr", {}, make("th", { scope: "row" }, nodeButton(each.logit)), make("td", { className: "barred" }, signedBar(each.by, most)), make("td", { className: "number" }, number(each.by))));
  return make("section", { className: "edges totals" }, make("h3", {}, "Adds to logits, along all paths"), make("table", {}, make("tbody", {}, ...rows)));
}

function excerpt([tokens, levels, own]) {
  const line = make("p", { className: "text", dir: "auto" });
  tokens.forEach((token, place) => {
    const level = levels[place];
    line.append(make("span", { className: `${level ? `k${level}` : ""}${place === own ? " own" : ""}` }, token));
  });
  return line;
}

function describe(k) {
  const found = make("div");
  const known = G.kind[k] === LATENT ? said.known[`${G.layer[k]}_${G.latent[k]}`] : null;
  const state = known && known.state ? make("span", { className: `state ${known.state}` }, known.state) : null;
  found.append(make("h2", {}, kindMark(k), G.words_at[k], state), make("p", { className: "soft" }, placeOf(k)));
  const pinned = S.pinned.includes(k);
  found.append(
    make(
      "p",
      { className: "line" },
      make("button", { type: "button", id: "pin", onclick: () => pin(k) }, pinned ? "Unpin" : "Pin"),
      S.clicked >= 0 ? make("button", { type: "button", onclick: () => hold(-1) }, "Let go") : null,
      make("code", { className: "id" }, G.id[k]),
    ),
  );
  const isLogit = G.kind[k] === LOGIT;
  found.append(
    facts([
      ["code", G.kind[k] === LATENT ? number(G.activation[k]) : "–"],
      [isLogit ? "probability" : "influence", percent(isLogit ? G.probability[k] : G.share[k])],
      ["logit less the mean", isLogit ? number(G.value[k]) : "–"],
      ["constant part", isLogit || G.kind[k] === LATENT ? number(G.constant[k]) : "–"],
      ["fires on", known && known.rate ? (known.rate >= 0.05 ? percent(known.rate) : `1 in ${Math.round(1 / known.rate).toLocaleString("en")} tokens`) : "–"],
      ["greatest code", known ? number(known.most) : "–"],
    ]),
  );
  if (known) {
    const fires = known.fires.length ? make("div", {}, make("h4", {}, "fires on"), make("p", { className: "chips" }, ...known.fires.map((token) => make("code", {}, token)))) : null;
    found.append(make("div", { className: "effects" }, fires, effects("raises", known.up), effects("lowers", known.down)));
    if (known.excerpts.length) found.append(make("section", { className: "texts" }, make("h3", {}, "Fires most on"), ...known.excerpts.map(excerpt)));
  }
  if (!isLogit) found.append(totals(k));
  if (G.kind[k] !== TOKEN && G.kind[k] !== ERROR) found.append(edgeTable(k, G.inputs, "Inputs", "Weight: its part of the value here. Share: of all inputs' sizes that the graph kept."));
  if (!isLogit) found.append(edgeTable(k, G.outputs, "Outputs", "Share: of all inputs of the node that it goes to; those first that matter more to the logits."));
  const same = G.kind[k] === LATENT ? G.order.filter((other) => other !== k && G.kind[other] === LATENT && G.latent[other] === G.latent[k] && G.layer[other] === G.layer[k]) : [];
  if (same.length) found.append(make("section", {}, make("h3", {}, "The same latent at other positions"), make("p", { className: "chips" }, ...same.sort((a, b) => G.position[a] - G.position[b]).slice(0, 60).map((other) => nodeButton(other, `${G.position[other]} ${said.tokens[G.position[other]]}`)))));
  return found;
}

function start() {
  const found = make("div");
  const searching = byId("search").value.trim() !== "";
  const own = searching ? [...S.found] : G.order.filter((k) => G.kind[k] === LATENT).slice(0, 25);
  found.append(make("h2", {}, searching ? `${own.length} nodes found` : "Most influential latents"));
  if (!searching) found.append(make("p", { className: "hint" }, "Point at a node to see its links; click, tap or press Enter to hold it."));
  found.append(
    make(
      "ol",
      { className: "nodes" },
      ...own.slice(0, 60).map((k) => make("li", {}, nodeButton(k), make("small", {}, short(k)), make("span", { className: "number soft" }, percent(G.probability[k] ?? G.share[k])))),
    ),
  );
  return found;
}

function showPanel() {
  const k = S.clicked >= 0 ? S.clicked : S.hovered;
  byId("panel").replaceChildren(k >= 0 ? describe(k) : start());
}
