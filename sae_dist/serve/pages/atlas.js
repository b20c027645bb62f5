"use strict";
// Keys for what the pages can do without them. Nothing is fetched, and nothing of a page's text is made markup.
(() => {
  const help = document.getElementById("help");
  const open = document.getElementById("help-open");
  const search = document.getElementById("search");
  open.hidden = false;
  const toggle = () => (help.open ? help.close() : help.showModal());
  open.addEventListener("click", toggle);

  const rows = () => [...document.querySelectorAll("[data-move]")].filter((each) => each.offsetParent !== null);
  let current = null;
  const move = (by) => {
    const all = rows();
    if (!all.length) return;
    const at = all.indexOf(current);
    const next = all[at < 0 ? (by > 0 ? 0 : all.length - 1) : Math.min(Math.max(at + by, 0), all.length - 1)];
    if (current) current.classList.remove("current");
    current = next;
    current.classList.add("current");
    const target = current.querySelector("a.latent") || current;
    target.focus({ preventScroll: true });
    current.scrollIntoView({ block: "nearest" });
  };
  const follow = (rel) => {
    const link = document.querySelector(`a[rel="${rel}"]`);
    if (link) link.click();
  };
  const keys = {
    "/": () => search && (search.focus(), search.select()),
    j: () => move(1),
    k: () => move(-1),
    n: () => follow("next"),
    p: () => follow("prev"),
    u: () => document.querySelector("a.brand").click(),
    "?": toggle,
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    if (event.key === "Escape" && event.target === search) return search.blur();
    if (event.target.closest("input:not([type=radio]):not([type=checkbox]), textarea, select")) return;
    if (help.open && event.key !== "?") return;
    const act = keys[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });

  // Where nothing can be pointed at, a touch shows what pointing does.
  const note = document.createElement("output");
  note.className = "note";
  note.hidden = true;
  document.body.append(note);
  document.addEventListener("click", (event) => {
    const token = event.target.closest(".text span[title], .sentence span[title]");
    note.hidden = !token;
    if (token) note.textContent = `${token.textContent}  –  ${token.title}`;
  });

  for (const form of document.querySelectorAll('form[method="post"]')) {
    form.addEventListener("submit", () => {
      const button = form.querySelector("button");
      button.disabled = true;
      button.textContent = "…";
    });
  }
  window.addEventListener("pageshow", (event) => event.persisted && location.reload());
})();
