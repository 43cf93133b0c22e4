(() => {
  const form = document.getElementById("filters"), list = document.getElementById("instances");
  const fields = [...form.elements].filter(field => field.name);
  const rows = [...list.children].map((row, turn) => ({row, turn, ious: JSON.parse(row.dataset.ious)}));
  const apply = () => {
    const want = Object.fromEntries(fields.map(field => [field.name, field.value]));
    for (const item of rows) {
      const all = Object.values(item.ious);
      item.iou = want.model ? item.ious[want.model] : Math.min(...all);
      item.gap = Math.max(...all) - (want.model ? item.iou : Math.min(...all));
      item.row.hidden = item.iou === undefined || item.iou < +want.least || item.iou > +want.most
        || (want.size && item.row.dataset.size !== want.size) || item.row.dataset.prompt !== want.prompt;
      for (const panel of item.row.querySelectorAll("[data-model]"))
        panel.hidden = want.model && panel.dataset.model !== want.model;
    }
    const order = {
      turn: (a, b) => a.turn - b.turn,
      worst: (a, b) => a.iou - b.iou,
      best: (a, b) => b.iou - a.iou,
      gap: (a, b) => b.gap - a.gap,
    };
    list.append(...rows.sort(order[want.order]).map(item => item.row));
    form.querySelector("output").value = `${rows.filter(item => !item.row.hidden).length} shown`;
    return want;
  };
  const start = new URLSearchParams(location.hash.slice(1));
  for (const field of fields) if (start.has(field.name)) field.value = start.get(field.name);
  for (const event of ["input", "change"])
    form.addEventListener(event, () => location.replace("#" + new URLSearchParams(apply())));
  apply();
})();
