// Which requests of a page content blockers would stop: uBlock Origin's engine and Ghostery's, both with the lists that uBlock Origin has on.
//
//   node blockers.mjs NODE_MODULES UBLOCK_ORIGIN <<< '{"page": "https://www.example.com/", "requests": [[url, type], …]}'
//
// prints {"uBlock Origin": [request, …], "Ghostery": […]}: those that are stopped, and by which filter.
import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

const [npm, extension] = process.argv.slice(2);
const { page, requests } = JSON.parse(readFileSync(0, "utf8"));
const read = (path) => readFileSync(join(extension, path), "utf8");

const isOn = ({ content, off }) => content === "filters" && !off;
const shipped = ({ contentURL }) => [contentURL].flat().find((path) => existsSync(join(extension, path)));
const lists = Object.entries(JSON.parse(read("assets/assets.json")))
  .filter(([, asset]) => isOn(asset))
  .map(([name, asset]) => ({ name, raw: read(shipped(asset)) }));

const { StaticNetFilteringEngine, pslInit } = await import(join(npm, "@gorhill/ubo-core/index.js"));
pslInit(read("assets/thirdparties/publicsuffix.org/list/effective_tld_names.dat")); // without it every sub-domain is a third party
const ubo = await StaticNetFilteringEngine.create({ noPSL: true });
await ubo.useLists(lists);
const byUbo = ([url, type]) => ubo.matchRequest({ originURL: page, url, type }) === 1 && ubo.toLogData().raw;

const { FiltersEngine, Request } = createRequire(join(npm, "x"))("@ghostery/adblocker");
const ghostery = FiltersEngine.parse(lists.map(({ raw }) => raw).join("\n"));
const byGhostery = ([url, type]) => {
  const { match, filter } = ghostery.match(Request.fromRawDetails({ sourceUrl: page, url, type }));
  return match && String(filter);
};

const stopped = (by) => requests.map((request) => [...request, by(request)]).filter((found) => found[2]);
console.log(JSON.stringify({ "uBlock Origin": stopped(byUbo), Ghostery: stopped(byGhostery) }));
