// The pages work without this: it shows times in the reader's own zone and lets new mails slide in.
"use strict";

function localTimes(root) {
  const today = new Date().toDateString();
  for (const time of root.querySelectorAll("time")) {
    const at = new Date(time.dateTime);
    const clock = { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" };
    const day = { day: "numeric", month: "short" };
    time.title = at.toISOString();
    if ("long" in time.dataset) {
      time.textContent = at.toLocaleString("en-GB", { ...clock, ...day, year: "numeric", timeZoneName: "short" });
    } else {
      time.textContent = at.toLocaleString("en-GB", at.toDateString() === today ? clock : { ...day, ...clock });
    }
  }
}

async function refresh(inbox) {
  const answer = await fetch(inbox.dataset.watch);
  const { newest } = await answer.json();
  // Somebody who is about to delete, or to tab through the list, is not disturbed.
  const busy = inbox.querySelector("details[open]") || inbox.contains(document.activeElement);
  if (!answer.ok || String(newest) === inbox.dataset.newest || busy) return inbox;
  const page = new DOMParser().parseFromString(await (await fetch(location.href)).text(), "text/html");
  const fresh = page.getElementById("inbox");
  const known = Number(inbox.dataset.newest);
  localTimes(fresh);
  for (const link of fresh.querySelectorAll("a[data-id]")) {
    if (Number(link.dataset.id) > known) link.classList.add("fresh");
  }
  // Whoever has scrolled down keeps the line they read where it is.
  const before = inbox.offsetHeight;
  inbox.replaceWith(fresh);
  if (window.scrollY > 0) window.scrollBy(0, fresh.offsetHeight - before);
  document.title = page.title;
  return fresh;
}

async function watch(inbox) {
  for (;;) {
    await new Promise((wake) => setTimeout(wake, 2000));
    if (document.hidden) continue;
    try {
      inbox = await refresh(inbox);
    } catch {
      // The server is restarting; it is asked again.
    }
  }
}

localTimes(document);
const inbox = document.getElementById("inbox");
if (inbox && inbox.dataset.live === "yes") watch(inbox);
