(() => {
  // The definition of a word, beside the word that a reader points at or comes to by keyboard. Escape hides it.
  const tip = document.getElementById("tip");
  const hide = () => { tip.hidden = true; };
  const show = term => {
    const found = document.getElementById(term.hash.slice(1));
    if (!found) return;
    tip.textContent = found.textContent;
    tip.hidden = false;
    const word = term.getBoundingClientRect(), box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(8, Math.min(word.left, document.documentElement.clientWidth - box.width - 8))}px`;
    tip.style.top = `${word.bottom + box.height + 12 < innerHeight ? word.bottom + 6 : word.top - box.height - 6}px`;
  };
  const termOf = event => event.target.closest && event.target.closest(".term");
  for (const event of ["mouseover", "focusin"])
    document.addEventListener(event, found => { const term = termOf(found); if (term) show(term); });
  for (const event of ["mouseout", "focusout"])
    document.addEventListener(event, found => {
      if (termOf(found) && found.relatedTarget !== tip) hide();
    });
  tip.addEventListener("mouseleave", hide);
  document.addEventListener("keydown", event => { if (event.key === "Escape") hide(); });
  addEventListener("scroll", hide, {passive: true});

  // A table that is wider than the window says so, and can be scrolled by keyboard.
  const watch = wide => {
    const scroller = wide.querySelector(".scroll"), more = wide.querySelector(".more");
    const update = () => {
      const overflows = scroller.scrollWidth > scroller.clientWidth + 1;
      wide.classList.toggle("overflows", overflows);
      wide.classList.toggle("at-end", scroller.scrollLeft + scroller.clientWidth >= scroller.scrollWidth - 2);
      more.hidden = !overflows;
      if (overflows) scroller.tabIndex = 0; else scroller.removeAttribute("tabindex");
    };
    scroller.addEventListener("scroll", update, {passive: true});
    new ResizeObserver(update).observe(scroller);
    update();
  };
  document.querySelectorAll(".wide").forEach(watch);
})();
