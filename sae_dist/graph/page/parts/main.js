// What a reader does: pointing, keys, search, sliders.
const stage = byId("stage"), TOUCH = 18, POINT = 11, REST_MS = 40;
let back = -1, rest = 0;

function again() {
  choose();
  arrange(stage.clientWidth - byId("layers").offsetWidth - 2);
  drawBelow();
}

function changed() {
  choose();
  again();
  showPanel();
  showPinned();
  writeAddress();
}

// Point at a node from the list beside the picture: its links, not its words.
function hover(k) {
  if (S.hovered === k) return;
  S.hovered = k;
  drawAbove();
}

function point(k, x, y) {
  const tip = byId("tip");
  tip.hidden = k < 0;
  if (k >= 0) {
    tip.textContent = G.kind[k] === LATENT ? `${G.words_at[k]}\n${placeOf(k)}\ncode ${number(G.activation[k])}, influence ${percent(G.share[k])}` : `${G.words_at[k]}\n${placeOf(k)}`;
    const left = Math.min(Math.max(x + 14, 8), innerWidth - tip.offsetWidth - 8);
    const top = y + 18 + tip.offsetHeight < innerHeight ? y + 18 : y - tip.offsetHeight - 12;
    tip.style.left = `${left}px`;
    tip.style.top = `${top}px`;
  }
  if (S.hovered === k) return;
  S.hovered = k;
  stage.classList.toggle("pointing", k >= 0);
  drawAbove();
  // The words come once the pointer rests, so that a sweep over many nodes costs their lines alone.
  clearTimeout(rest);
  if (S.clicked < 0) rest = setTimeout(showPanel, REST_MS);
}

// Hold a node, or none: what is held stays when the pointer leaves.
function hold(k) {
  if (S.clicked >= 0 && k >= 0 && k !== S.clicked) visits.push(S.clicked);
  S.clicked = k;
  S.hovered = -1;
  byId("tip").hidden = true;
  if (k >= 0 && !shown[k]) again();
  else drawAbove();
  if (k >= 0) reveal(k);
  showPanel();
  byId("panel").scrollTop = 0;
  writeAddress();
  byId("spoken").textContent = k >= 0 ? `${G.words_at[k]}, ${placeOf(k)}, ${G.kind[k] === LOGIT ? "probability" : "influence"} ${percent(G.probability[k] ?? G.share[k])}` : "nothing is held";
}

function reveal(k) {
  const left = byId("layers").offsetWidth;
  if (L.x[k] < stage.scrollLeft + 20) stage.scrollLeft = L.x[k] - 60;
  if (L.x[k] > stage.scrollLeft + stage.clientWidth - left - 20) stage.scrollLeft = L.x[k] - stage.clientWidth + left + 60;
}

// Hold a node that keys lead to, and bring it into sight.
function walk(k) {
  hold(k);
  const y = below.getBoundingClientRect().top + L.y[k];
  if (y < 40 || y > innerHeight - 40) scrollBy(0, y - innerHeight / 2);
}

function find(words) {
  const terms = words.toLowerCase().split(/\s+/).filter(Boolean);
  S.found = new Set();
  if (terms.length) {
    for (const k of [...G.order, ...G.kind.keys()]) {
      if (terms.every((term) => G.searched[k].includes(term))) S.found.add(k);
    }
  }
  S.clicked = -1;
  drawBelow();
  showPanel();
}

function along(side) {
  if (S.clicked < 0) return;
  const [first] = edgesOf(S.clicked, side).filter((each) => shown[each.other]);
  if (first) walk(first.other);
}

function step(dx, dy) {
  if (S.clicked < 0) return walk(G.order.find((k) => shown[k] && G.kind[k] === LATENT) ?? 0);
  const next = beside(S.clicked, dx, dy);
  if (next >= 0) walk(next);
}

function zoom(by) {
  S.zoom = Math.min(Math.max(S.zoom * by, 0.5), 3);
  again();
}

// Sliders run by ratio: half of the way is the geometric mean.
const whole = Math.max(G.order.filter((k) => G.kind[k] !== TOKEN).length, 1);
const fromSlider = (value) => Math.round(Math.min(LEAST_NODES, whole) * (whole / Math.min(LEAST_NODES, whole)) ** (value / 100));
const toSlider = (nodes) => (whole <= LEAST_NODES ? 100 : (100 * Math.log(Math.max(nodes, LEAST_NODES) / LEAST_NODES)) / Math.log(whole / LEAST_NODES));

function sliders() {
  const nodes = byId("nodes"), edges = byId("edges");
  const reached = G.order.reduce((sum, k) => sum + (shown[k] ? G.share[k] : 0), 0);
  nodes.value = toSlider(S.nodes);
  edges.value = S.edges;
  const count = G.order.filter((k) => shown[k] && G.kind[k] !== TOKEN).length;
  byId("nodes-said").textContent = `${count} of ${whole}, ${percent(reached / (said.whole || 1))} of influence`;
  byId("edges-said").textContent = `strongest ${S.edges} on each side`;
  byId("errors").checked = S.errors;
}

function dialogue() {
  const box = byId("choice"), area = byId("choice-text");
  area.value = JSON.stringify(chosenAsJson(), null, 1);
  box.showModal();
}

function useChoice() {
  let found = null;
  try {
    found = JSON.parse(byId("choice-text").value);
  } catch {
    found = null;
  }
  if (found === null || typeof found !== "object") return tell("That is no choice of nodes; it is JSON with pinnedIds and supernodes.");
  const missing = takeOver(found.qParams || found);
  byId("choice").close();
  changed();
  tell(missing ? `${missing} ids are not in this graph.` : "Taken over.");
}

function save() {
  const link = make("a", { href: URL.createObjectURL(new Blob([byId("choice-text").value], { type: "application/json" })), download: "qParams.json" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

const toggleHelp = () => (byId("help").open ? byId("help").close() : byId("help").showModal());
const KEYS = {
  "/": () => (byId("search").focus(), byId("search").select()),
  ArrowLeft: () => step(-1, 0),
  ArrowRight: () => step(1, 0),
  ArrowUp: () => step(0, -1),
  ArrowDown: () => step(0, 1),
  i: () => along(G.inputs),
  o: () => along(G.outputs),
  u: () => visits.length && ((back = visits.pop()), (S.clicked = -1), walk(back)),
  p: () => pin(active()),
  g: group,
  e: () => ((S.errors = !S.errors), changed(), sliders()),
  "+": () => zoom(1.25),
  "-": () => zoom(0.8),
  "?": toggleHelp,
  Escape: () => hold(-1),
};

function listen() {
  const where = (event) => {
    const frame = below.getBoundingClientRect();
    return nodeAt(event.clientX - frame.left, event.clientY - frame.top, event.pointerType === "touch" ? TOUCH : POINT);
  };
  let due = null;
  stage.addEventListener("pointermove", (event) => {
    if (event.pointerType === "touch") return;
    if (due === null) requestAnimationFrame(() => (point(where(due), due.clientX, due.clientY), (due = null)));
    due = event;
  });
  stage.addEventListener("pointerleave", () => point(-1, 0, 0));
  stage.addEventListener("click", (event) => {
    const k = where(event);
    if (event.shiftKey || event.ctrlKey || event.metaKey) pin(k);
    else hold(k === S.clicked ? -1 : k);
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    const own = event.target;
    if (event.key === "Escape" && own.id === "search") {
      own.value = "";
      find("");
      return own.blur();
    }
    const open = document.querySelector("dialog[open]");
    if (own.closest("input:not([type=checkbox]), textarea") || (open && !(event.key === "?" && byId("help").open))) return;
    if (event.key.startsWith("Arrow") && own.closest("summary, #panel, #list")) return;
    const act = KEYS[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });
  byId("search").addEventListener("input", (event) => find(event.target.value));
  byId("search").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && S.found.size) (hold([...S.found][0]), event.target.blur(), stage.focus());
  });
  byId("nodes").addEventListener("input", (event) => ((S.nodes = fromSlider(event.target.value)), again(), sliders(), writeAddress()));
  byId("edges").addEventListener("input", (event) => ((S.edges = +event.target.value), drawAbove(), sliders(), writeAddress()));
  byId("errors").addEventListener("change", (event) => ((S.errors = event.target.checked), changed(), sliders()));
  byId("larger").addEventListener("click", () => zoom(1.25));
  byId("smaller").addEventListener("click", () => zoom(0.8));
  byId("group").addEventListener("click", group);
  byId("json").addEventListener("click", dialogue);
  byId("use").addEventListener("click", useChoice);
  byId("save").addEventListener("click", save);
  byId("unpin").addEventListener("click", () => ((S.pinned = []), (S.groups = []), picked.clear(), changed()));
  byId("help-open").addEventListener("click", toggleHelp);
  for (const link of document.querySelectorAll("[data-node]")) {
    link.addEventListener("click", () => {
      const k = G.place.get(link.dataset.node);
      if (k === undefined) return tell("That node is not in the graph that is shown here.");
      hold(k);
      stage.scrollIntoView({ block: "nearest" });
    });
  }
  addEventListener("resize", again);
  addEventListener("hashchange", () => (readAddress(), changed(), sliders()));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => (readColours(), again(), showPinned()));
}

// For other scripts, such as tests: where a node is on the screen, and what is chosen.
window.graphPage = {
  place: (id) => {
    const k = G.place.get(id), frame = below.getBoundingClientRect();
    return [frame.left + L.x[k], frame.top + L.y[k], Boolean(shown[k])];
  },
  choice: chosenAsJson,
};

readColours();
readAddress();
listen();
changed();
sliders();
stage.scrollLeft = stage.scrollWidth;
if (S.clicked >= 0) reveal(S.clicked);
