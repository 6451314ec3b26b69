// A classic script in the head: it runs before the first paint, so a chosen theme never flashes.
try {
  document.documentElement.dataset.theme = localStorage.getItem("sdstream.theme") ?? "system";
} catch {
  document.documentElement.dataset.theme = "system";
}
