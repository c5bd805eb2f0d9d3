(function () {
  "use strict";

  function key(row, column) {
    var text = row.cells[column].getAttribute("data-sort");
    if (text === null) { return null; }
    var value = Number(text);
    return text !== "" && !Number.isNaN(value) ? value : text;
  }

  function compare(one, other) {
    if (typeof one === "number" && typeof other === "number") { return one - other; }
    return String(one).localeCompare(String(other), "en", { numeric: true });
  }

  function sortBy(table, column, descending) {
    var body = table.tBodies[0];
    var rows = Array.prototype.map.call(body.rows, function (row, place) {
      return { row: row, key: key(row, column), place: place };
    });
    rows.sort(function (one, other) {
      // What has no value stays at the bottom, whichever way the rest goes.
      if (one.key === null || other.key === null) {
        return (one.key === null) - (other.key === null) || one.place - other.place;
      }
      var order = compare(one.key, other.key);
      return (descending ? -order : order) || one.place - other.place;
    });
    rows.forEach(function (item) { body.appendChild(item.row); });
    Array.prototype.forEach.call(table.tHead.rows[0].cells, function (cell, place) {
      if (place === column) {
        cell.setAttribute("aria-sort", descending ? "descending" : "ascending");
      } else {
        cell.removeAttribute("aria-sort");
      }
    });
  }

  function makeSortable(table) {
    Array.prototype.forEach.call(table.tHead.rows[0].cells, function (cell, column) {
      if (cell.hasAttribute("data-plain")) { return; }
      var button = document.createElement("button");
      button.type = "button";
      button.textContent = cell.textContent;
      cell.textContent = "";
      cell.appendChild(button);
      button.addEventListener("click", function () {
        sortBy(table, column, cell.getAttribute("aria-sort") === "ascending");
      });
    });
  }

  function makeFilter(box, table) {
    var tools = box.querySelector(".tools");
    var input = tools.querySelector("input");
    var count = tools.querySelector(".count");
    var rows = Array.prototype.slice.call(table.tBodies[0].rows);
    function apply() {
      var words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      var shown = 0;
      rows.forEach(function (row) {
        var text = row.getAttribute("data-words");
        row.hidden = !words.every(function (word) { return text.indexOf(word) >= 0; });
        shown += row.hidden ? 0 : 1;
      });
      count.textContent = shown + " of " + rows.length + (rows.length === 1 ? " row" : " rows");
    }
    input.addEventListener("input", apply);
    apply();
    tools.hidden = false;
  }

  function makeTies(table) {
    var rows = Array.prototype.slice.call(table.tBodies[0].rows);
    function show(chosen) {
      var tied = chosen ? (chosen.getAttribute("data-tied") || "").split(" ") : [];
      rows.forEach(function (row) {
        row.classList.toggle("chosen", row === chosen && tied[0] !== "");
        row.classList.toggle("tiedrow", tied.indexOf(row.getAttribute("data-rank")) >= 0);
      });
    }
    rows.forEach(function (row) {
      if (!row.hasAttribute("data-tied")) { return; }
      row.addEventListener("mouseenter", function () { show(row); });
      row.addEventListener("mouseleave", function () { show(null); });
      row.addEventListener("click", function () { show(row); });
    });
  }

  Array.prototype.forEach.call(document.querySelectorAll("[data-sortable]"), function (box) {
    var table = box.querySelector("table");
    makeSortable(table);
    makeFilter(box, table);
    makeTies(table);
    box.classList.add("live");
  });

  // Paper cannot be unfolded.
  var folded = [];
  window.addEventListener("beforeprint", function () {
    folded = Array.prototype.slice.call(document.querySelectorAll("details:not([open])"));
    folded.forEach(function (block) { block.open = true; });
  });
  window.addEventListener("afterprint", function () {
    folded.forEach(function (block) { block.open = false; });
    folded = [];
  });

  // A link into a folded block unfolds it.
  window.addEventListener("hashchange", function () {
    var target = document.getElementById(location.hash.slice(1));
    var block = target && target.closest("details");
    if (block) { block.open = true; target.scrollIntoView(); }
  });
}());
