// Says how far a spreadsheet is, and shows the next page once it is done.
const place = document.querySelector("[data-batch-state]");
const every = 1500;

async function look() {
  try {
    const answer = await fetch(place.dataset.batchState, { headers: { accept: "application/json" } });
    const told = await answer.json();
    if (!told.running) {
      location.reload();
      return;
    }
    if (told.words && told.words !== place.textContent) {
      place.textContent = told.words;
    }
  } catch {
    // The button is still there.
  }
  setTimeout(look, every);
}

if (place) {
  setTimeout(look, every);
}
