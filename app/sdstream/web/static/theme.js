// A classic script in <head> runs before the first paint, so no other theme flashes.
try {
  document.documentElement.dataset.theme = localStorage.getItem("sdstream.theme") ?? "system";
} catch {
  document.documentElement.dataset.theme = "system";
}
