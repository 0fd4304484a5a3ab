// Shows token and number of coloured tokens: under the pointer, or by arrow keys on a focused row.
(() => {
  "use strict";
  const SIGNS = { "\n": "\u21b5", "\t": "\u21e5", " ": "\u00b7" };
  const tip = document.createElement("div");
  tip.id = "token-tip";
  tip.hidden = true;
  tip.setAttribute("role", "status");
  document.body.append(tip);
  let current = null;

  const number = (token) => token.dataset.act ?? (token.title || "0");
  const hide = () => {
    if (current) current.classList.remove("at");
    current = null;
    tip.hidden = true;
  };
  const show = (token) => {
    hide();
    current = token;
    token.classList.add("at");
    const text = document.createElement("code");
    text.textContent = token.textContent.replace(/[\n\t ]/g, (c) => SIGNS[c]);
    const value = document.createElement("b");
    value.textContent = number(token);
    tip.replaceChildren(text, "\u2002", value);
    // Our own tip stands in for the browser's.
    if (token.title) { token.dataset.act = token.title; token.removeAttribute("title"); }
    tip.hidden = false;
    const at = token.getClientRects()[0], own = tip.getBoundingClientRect();
    const above = at.top - own.height - 6;
    tip.style.left = Math.max(4, Math.min(at.left, innerWidth - own.width - 4)) + "px";
    tip.style.top = (above > 4 ? above : at.bottom + 6) + "px";
  };
  const tokenOf = (event) => {
    const row = event.target.closest?.(".tokens");
    return row && event.target !== row ? event.target : null;
  };

  document.addEventListener("pointerover", (event) => {
    const token = tokenOf(event);
    if (token) show(token); else if (!document.activeElement?.matches(".tokens")) hide();
  });
  document.addEventListener("click", (event) => { const token = tokenOf(event); if (token) show(token); });
  document.addEventListener("focusin", (event) => {
    if (event.target.matches(".tokens:focus-visible")) {
      const first = event.target.querySelector(".p") || event.target.firstElementChild;
      if (first) show(first);
    }
  });
  document.addEventListener("focusout", hide);
  document.addEventListener("scroll", () => { if (!document.activeElement?.matches(".tokens")) hide(); }, { passive: true });
  document.addEventListener("keydown", (event) => {
    const row = document.activeElement;
    if (event.key === "Escape") return hide();
    if (!row?.matches(".tokens") || !row.firstElementChild) return;
    const at = current?.parentElement === row ? current : null;
    const next = {
      ArrowRight: at ? at.nextElementSibling : row.firstElementChild,
      ArrowLeft: at ? at.previousElementSibling : row.lastElementChild,
      Home: row.firstElementChild,
      End: row.lastElementChild,
    }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    if (next) show(next);
  });
})();
