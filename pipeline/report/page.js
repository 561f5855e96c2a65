"use strict";
// The map and the switch between light and dark. Everything from the output is shown by textContent, never as HTML.
(() => {
  const byId = (id) => document.getElementById(id);
  const read = (id) => JSON.parse(byId(id).textContent);
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const count = (number) => number.toLocaleString("en-US");
  const darkSystem = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.theme || (darkSystem.matches ? "dark" : "light")) === "dark";

  const SURE = [0.1, 0.25, 0.5, 0.75];
  const SURE_NAMES = ["below 0.1", "0.1 to 0.25", "0.25 to 0.5", "0.5 to 0.75", "0.75 and more"];
  const HUES = [["#1f77b4", "#6db6f2"], ["#d1600b", "#f5a35c"], ["#2c8a2c", "#8fd07a"], ["#c02a4a", "#ff8095"],
    ["#7a52a8", "#c3a3ea"], ["#8a6d00", "#e3cb5a"], ["#00808a", "#5fd0d8"]];
  const OTHER = ["#6d727a", "#a2a8b2"];
  const CLUSTER_PX = 46;
  const LISTED = 9;

  const places = read("places");
  const outline = read("outline");
  const total = places.lat.length;
  // Positions on a map one pixel wide: zooming is multiplying.
  const across = new Float64Array(total);
  const down = new Float64Array(total);
  for (let i = 0; i < total; i++) {
    const point = L.CRS.EPSG3857.latLngToPoint(L.latLng(places.lat[i], places.lon[i]), 0);
    across[i] = point.x;
    down[i] = point.y;
  }
  const hueOf = new Map();
  places.countries.forEach((_, i) => hueOf.set(i, places.photosIn[i]));
  [...hueOf.entries()].sort((a, b) => b[1] - a[1]).forEach(([country], rank) => hueOf.set(country, rank));

  function decoded(text) {
    return text.split(" ").filter(Boolean).map((line) => {
      const points = [];
      let at = 0;
      const move = () => {
        let value = 0, shift = 0, five;
        do {
          five = line.charCodeAt(at++) - 63;
          value |= (five & 31) << shift;
          shift += 5;
        } while (five >= 32);
        return (value >> 1) ^ -(value & 1);
      };
      let lat = 0, lon = 0;
      while (at < line.length) {
        lat += move();
        lon += move();
        points.push([Math.max(-85.05, lat / 100), lon / 100]);
      }
      return points;
    });
  }

  // A ring's lines without those along which the data are cut: the 180th meridian, and through Antarctica.
  function shores(ring) {
    const isCut = ([lat1, lon1], [lat2, lon2]) => (lon1 === lon2 && (Math.abs(lon1) === 180 || (lon1 === 0 && lat1 < -60)))
      || (lat1 < -85 && lat2 < -85);
    const lines = [[ring[0]]];
    for (let i = 1; i <= ring.length; i++) {
      const next = ring[i % ring.length];
      if (isCut(ring[i - 1], next)) lines.push([next]);
      else lines[lines.length - 1].push(next);
    }
    return lines.filter((line) => line.length > 1);
  }

  const map = L.map("world", { attributionControl: false, minZoom: 0, maxZoom: 9, zoomSnap: 0.25, wheelPxPerZoomLevel: 90,
    maxBounds: [[-86, -200], [86, 200]], maxBoundsViscosity: 1 });
  L.control.attribution({ prefix: false }).addAttribution("Outline: GSHHG. Map: Leaflet").addTo(map);
  const onEarth = L.canvas({ padding: 0.3 });
  const earth = { renderer: onEarth, interactive: false, smoothFactor: 1 };
  const rings = decoded(outline.land);
  const land = L.polygon(rings.map((ring) => [ring]), { ...earth, stroke: false }).addTo(map);
  const coasts = L.polyline(rings.flatMap(shores), earth).addTo(map);
  const lakes = L.polygon(decoded(outline.lakes).map((ring) => [ring]), earth).addTo(map);
  const borders = L.polyline(decoded(outline.borders), earth).addTo(map);

  map.createPane("clusters").style.zIndex = 450;
  const onTop = L.canvas({ pane: "clusters", padding: 0.3, tolerance: 4 });
  const Cluster = L.CircleMarker.extend({
    _updatePath() {
      L.CircleMarker.prototype._updatePath.call(this);
      const context = this._renderer._ctx;
      if (this.options.label && !this._empty()) {
        context.globalAlpha = 1;
        context.fillStyle = this.options.labelColour;
        context.font = "600 12px system-ui, sans-serif";
        context.textAlign = "center";
        context.textBaseline = "middle";
        context.fillText(this.options.label, this._point.x, this._point.y);
      }
    },
  });
  const layer = L.layerGroup().addTo(map);
  const atZoom = new Map();

  function clusters(zoom) {
    if (!atZoom.has(zoom)) {
      const scale = 2 ** zoom / CLUSTER_PX;
      const found = new Map();
      for (let i = 0; i < total; i++) {
        const key = Math.floor(across[i] * scale) * 1e6 + Math.floor(down[i] * scale);
        const photos = places.photos[i];
        let one = found.get(key);
        if (!one) found.set(key, (one = { x: 0, y: 0, photos: 0, sure: 0, most: 0, country: 0, places: 0, by: new Map() }));
        one.x += across[i] * photos;
        one.y += down[i] * photos;
        one.photos += photos;
        one.sure += places.sure[i] * photos;
        one.places += 1;
        const there = (one.by.get(places.country[i]) || 0) + photos;
        one.by.set(places.country[i], there);
        if (there > one.most) [one.most, one.country] = [there, places.country[i]];
      }
      const all = [...found.values()];
      for (const one of all) {
        one.x /= one.photos;
        one.y /= one.photos;
      }
      const apart = withoutOverlaps(all.sort((a, b) => b.photos - a.photos), 2 ** zoom);
      for (const one of apart) {
        one.at = L.CRS.EPSG3857.pointToLatLng(L.point(one.x, one.y), 0);
        one.sure /= one.photos;
        one.by = null;
      }
      atZoom.set(zoom, apart.sort((a, b) => b.photos - a.photos));
    }
    return atZoom.get(zoom);
  }

  // Dots that would cover each other's numbers go together, into the larger one.
  function withoutOverlaps(all, scale) {
    const near = 50 / scale;
    const squares = new Map();
    const kept = [];
    for (const one of all) {
      const column = Math.floor(one.x / near), row = Math.floor(one.y / near);
      let larger = null;
      for (let dx = -1; dx <= 1 && !larger; dx++) {
        for (let dy = -1; dy <= 1 && !larger; dy++) {
          larger = (squares.get((column + dx) * 1e6 + row + dy) || []).find((other) =>
            Math.hypot(other.x - one.x, other.y - one.y) * scale < 0.85 * (radius(other.photos) + radius(one.photos)));
        }
      }
      if (larger) {
        larger.photos += one.photos;
        larger.sure += one.sure;
        larger.places += one.places;
        for (const [country, photos] of one.by) {
          const there = (larger.by.get(country) || 0) + photos;
          larger.by.set(country, there);
          if (there > larger.most) [larger.most, larger.country] = [there, country];
        }
      } else {
        kept.push(one);
        const square = column * 1e6 + row;
        if (!squares.has(square)) squares.set(square, []);
        squares.get(square).push(one);
      }
    }
    return kept;
  }

  const radius = (photos) => (photos > 1 ? Math.min(11 + 2.6 * Math.log10(photos), 24) : 6);
  const short = (n) => (n >= 1e6 ? (n / 1e6).toPrecision(2) + "M" : n >= 1e4 ? Math.round(n / 1e3) + "k"
    : n >= 1e3 ? (n / 1e3).toFixed(1) + "k" : String(n));
  const degrees = (at) => `${Math.abs(at.lat).toFixed(2)}° ${at.lat < 0 ? "S" : "N"} ${Math.abs(at.lng).toFixed(2)}° ${at.lng < 0 ? "W" : "E"}`;
  const told = (one) => `${count(one.photos)} ${one.photos === 1 ? "photo" : "photos"}, ${one.places > 1 ? "most in " : ""}`
    + `${places.countries[one.country]}, ${degrees(one.at)}, mean confidence ${one.sure.toFixed(2)}`;
  const step = (sure) => SURE.filter((limit) => sure >= limit).length;
  const hue = (country) => (HUES[hueOf.get(country)] || OTHER)[isDark() ? 1 : 0];
  const byCountry = () => byId("colours").value === "country";
  const labelOn = (hex) => {
    const [r, g, b] = [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
    return r * 0.299 + g * 0.587 + b * 0.114 > 140 ? "#111" : "#fff";
  };

  function drawClusters() {
    const bounds = map.getBounds().pad(0.2);
    const inView = clusters(map.getZoom()).filter((one) => bounds.contains(one.at));
    layer.clearLayers();
    const edge = colour("--dot-edge");
    const steps = [0, 1, 2, 3, 4].map((i) => colour("--c" + i));
    for (const one of inView) {
      const fill = byCountry() ? hue(one.country) : steps[step(one.sure)];
      const label = one.photos > 1 ? short(one.photos) : "";
      new Cluster(one.at, { renderer: onTop, pane: "clusters", radius: radius(one.photos), weight: 1.5, color: edge, fillColor: fill, fillOpacity: 0.92,
        label, labelColour: labelOn(fill) })
        .on("click", () => map.setView(one.at, Math.min(map.getZoom() + 2, map.getMaxZoom())))
        .bindTooltip(() => { const tip = document.createElement("span"); tip.textContent = told(one); return tip; },
          { className: "tip", sticky: true })
        .addTo(layer);
    }
    listInView(inView.filter((one) => map.getBounds().contains(one.at)));
  }

  function listInView(inView) {
    const photos = inView.reduce((sum, one) => sum + one.photos, 0);
    byId("view-summary").textContent = `In view: ${count(photos)} photos, in ${count(inView.length)} dots.`
      + (inView.length > LISTED ? ` The ${LISTED} largest:` : "");
    byId("in-view").replaceChildren(...inView.slice(0, LISTED).map((one) => {
      const item = document.createElement("li");
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = told(one);
      button.addEventListener("click", () => map.setView(one.at, Math.min(map.getZoom() + 2, map.getMaxZoom())));
      item.append(button);
      return item;
    }));
  }

  function drawLegend() {
    const entries = byCountry()
      ? [...hueOf.entries()].sort((a, b) => a[1] - b[1]).slice(0, HUES.length).map(([country]) => [places.countries[country], hue(country)])
        .concat(hueOf.size > HUES.length ? [["elsewhere", OTHER[isDark() ? 1 : 0]]] : [])
      : SURE_NAMES.map((name, i) => [name, colour("--c" + i)]);
    byId("legend").replaceChildren(...entries.map(([name, fill]) => {
      const item = document.createElement("li");
      const swatch = document.createElement("span");
      swatch.style.backgroundColor = fill;
      item.append(swatch, name);
      return item;
    }));
  }

  function paint() {
    const [sea, coast, ground, border] = ["--sea", "--coast", "--land", "--border"].map(colour);
    land.setStyle({ fillColor: ground, fillOpacity: 1, fillRule: "nonzero" });
    coasts.setStyle({ color: coast, weight: 0.7 });
    lakes.setStyle({ fillColor: sea, fillOpacity: 1, color: coast, weight: 0.5 });
    borders.setStyle({ color: border, weight: 1 });
    byId("theme").textContent = isDark() ? "Light colours" : "Dark colours";
    drawLegend();
    drawClusters();
  }

  const within = (values) => [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))];
  const fit = (south, north) => {
    const [west, east] = within(places.lon);
    map.fitBounds([[south, west], [north, east]], { animate: false, maxZoom: 6, padding: [20, 20] });
  };
  const showAll = () => (total ? fit(...within(places.lat)) : map.setView([25, 0], 1.5));

  // At first the map is full, if need be without what is nearest to the poles.
  function showMost() {
    if (!total) return showAll();
    const [south, north] = within(places.lat);
    fit(Math.max(south, Math.min(-50, north - 1)), Math.min(north, Math.max(72, south + 1)));
    const full = Math.log2(map.getSize().x / 256);
    if (map.getZoom() < full) map.setView([30, 0], full, { animate: false });
    return map;
  }

  byId("theme").hidden = false;
  byId("theme").addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    paint();
  });
  darkSystem.addEventListener("change", paint);
  byId("colours").addEventListener("change", paint);
  byId("show-all").addEventListener("click", showAll);
  showMost();
  paint();
  map.on("moveend", drawClusters);
  byId("world").dataset.drawn = String(total);
})();
