// Filters the tiles of the gallery by what is typed, and keeps the words in the address.
(() => {
  const find = document.getElementById("find");
  if (!find) return;
  const form = document.getElementById("form"), room = document.getElementById("room");
  const tiles = [...document.querySelectorAll(".tile")], count = document.getElementById("count");
  const sections = [...document.querySelectorAll(".tiles")].map((box) => [box, box.closest("section")]);
  const plain = (text) => text.toLowerCase().normalize("NFKD").replace(/[\u0300-\u036f]/g, "");
  const texts = tiles.map((tile) => plain(tile.dataset.find));
  const show = () => {
    const words = plain(find.value).replace(/https?:\/\/\S*\/|v\d+$/g, "").split(/\s+/).filter(Boolean);
    let shown = 0;
    tiles.forEach((tile, i) => {
      const fits = words.every((word) => texts[i].includes(word)) &&
        (!form.value || tile.dataset.form === form.value) && (!room.value || tile.dataset.room === room.value);
      tile.hidden = !fits;
      shown += fits;
    });
    for (const [box, section] of sections) section.hidden = ![...box.children].some((tile) => !tile.hidden);
    count.textContent = shown === tiles.length ? "" : `${shown} of ${tiles.length}`;
    const query = new URLSearchParams();
    for (const input of [find, form, room]) if (input.value) query.set(input.id, input.value);
    history.replaceState(null, "", (`${query}` ? `?${query}` : location.pathname) + location.hash);
  };
  for (const [id, value] of new URLSearchParams(location.search)) {
    const input = { find, form, room }[id];
    if (input) input.value = value;
  }
  for (const input of [find, form, room]) input.addEventListener("input", show);
  show();
})();
