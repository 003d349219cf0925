// Prints, as JSON, what an editor offers where § stands in each of the texts that it reads. Argument: the types.
const ts = require("typescript");

const [types] = process.argv.slice(2);
const page = "/page.ts";
let text = "";
let version = 0;
const read = (file) => (file === page ? text : ts.sys.readFile(file));
const service = ts.createLanguageService({
  getScriptFileNames: () => [types, page],
  getScriptVersion: (file) => (file === page ? String(version) : "0"),
  getScriptSnapshot: (file) => (read(file) === undefined ? undefined : ts.ScriptSnapshot.fromString(read(file))),
  getCurrentDirectory: () => "/",
  getCompilationSettings: () => ({ strict: true, target: ts.ScriptTarget.ES2018, lib: ["lib.es2021.d.ts", "lib.dom.d.ts"], types: [] }),
  getDefaultLibFileName: ts.getDefaultLibFilePath,
  fileExists: (file) => file === page || ts.sys.fileExists(file),
  readFile: read,
});
const offered = JSON.parse(ts.sys.readFile("/dev/stdin")).map((given) => {
  text = given.replace("§", "");
  version++;
  const { entries } = service.getCompletionsAtPosition(page, given.indexOf("§"), {});
  return entries.map(({ name }) => name).sort();
});
console.log(JSON.stringify(offered));
