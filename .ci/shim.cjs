// Does the work of .ci/shim.
const fs = require("fs");
const { isDeepStrictEqual } = require("util");
const zlib = require("zlib");
const { parse } = require("acorn");
const { analyze } = require("eslint-scope");
const { minify } = require("terser");

// The names of the variables of the minified script, in the order in which they are declared. Which ones compress best only trying
// tells; these were found by .ci/shim --search, and are worth forty bytes of what browsers load.
const NAMES = "esuiaxmwptnlyohfvbzqdPgcratkraoritoreairenotagrririrxltirmavnrwirrrrigtfr";
const LETTERS = [..."eitclopgqsnfduhjrzaxwbSkymvOP"];

const SOURCE = fs.readFileSync("static/scq.js", "utf8");
const COMPRESS = { passes: 3, pure_getters: true, lhs_constants: false, booleans: false, global_defs: { DEBUG: false } };

/** The script with all that can go but the names. */
const compressed = async () =>
  (await minify(SOURCE, { ecma: 2018, toplevel: true, compress: COMPRESS, mangle: false, format: { ascii_only: true } })).code;

/**
 * A script in pieces: text, and where a variable stands: {variable: its number, key: the property's name, in {key: variable}}.
 * And for each variable which others must be called otherwise, because both are meant somewhere.
 */
function takeApart(code) {
  const tree = parse(code, { ecmaVersion: 2018, ranges: true });
  const { scopes } = analyze(tree, { ecmaVersion: 2018 });
  const variables = scopes.flatMap((scope) => scope.variables).filter((variable) => variable.identifiers.length);
  const others = variables.map(() => new Set());
  const globals = new Set(scopes[0].through.map(({ identifier }) => identifier.name));
  const places = new Map(); // where in the code: which variable
  const place = (at, number) => {
    if (places.has(at) || globals.has(variables[number].name)) {
      throw new Error(`cannot name ${variables[number].name}: no class, and neither var nor function outside of functions, please`);
    }
    places.set(at, number);
  };
  const apart = (one, other) => {
    if (one === other || !variables.includes(other)) return;
    others[variables.indexOf(one)].add(variables.indexOf(other));
    others[variables.indexOf(other)].add(variables.indexOf(one));
  };
  variables.forEach((variable, number) => {
    const uses = variable.references.map((reference) => reference.identifier);
    for (const { range } of new Set([...variable.identifiers, ...uses])) place(range[0], number);
    variable.scope.variables.forEach((other) => apart(variable, other));
    for (const { from } of variable.references) {
      for (let scope = from; scope !== variable.scope; scope = scope.upper) {
        scope.variables.forEach((other) => apart(variable, other)); // which would hide it
      }
    }
    // catch (error) { let error } is no JavaScript.
    if (variable.scope.type === "catch") variable.scope.childScopes.forEach((body) => body.variables.forEach((other) => apart(variable, other)));
  });
  const keys = keysOf(tree, places);
  const pieces = [];
  let done = 0;
  for (const at of [...places.keys()].sort((one, other) => one - other)) {
    const variable = places.get(at);
    const { from = at, key } = keys.get(at) || {};
    pieces.push(code.slice(done, from), { variable, key });
    done = at + variables[variable].name.length;
  }
  pieces.push(code.slice(done));
  return { pieces, others, globals };
}

/** Of {key: variable} and {variable}: by the place of the variable, where that begins, and the property's name. */
function keysOf(tree, places, found = new Map()) {
  if (tree.type === "Property" && tree.key.type === "Identifier" && !tree.computed) {
    const value = tree.value.type === "AssignmentPattern" ? tree.value.left : tree.value; // one with a default
    if (value.type === "Identifier" && places.has(value.range[0])) {
      found.set(value.range[0], { from: tree.key.range[0], key: tree.key.name });
    }
  }
  for (const part of Object.values(tree)) if (part && typeof part === "object") keysOf(part, places, found);
  return found;
}

/** The script with these names. */
const named = ({ pieces }, names) =>
  pieces
    .map((piece) => {
      if (typeof piece === "string") return piece;
      const name = names[piece.variable];
      return piece.key && piece.key !== name ? `${piece.key}:${name}` : name;
    })
    .join("");

/** A name for every variable: the wished one, or the first that is free. */
function namesFor({ others, globals }, wished) {
  const names = [];
  others.forEach((near, number) => {
    const free = (letter) => letter && !globals.has(letter) && ![...near].some((other) => names[other] === letter);
    const name = [wished[number], ...LETTERS].find(free);
    if (!name) throw new Error("more variables side by side than there are LETTERS");
    names.push(name);
  });
  return names;
}

/** One variable gets another name; whoever has that already, where it matters, gets the old one, and so on. */
function renamed({ others }, names, first, name) {
  const old = names[first];
  const next = names.slice();
  const todo = new Set([first]);
  for (const number of todo) {
    next[number] = names[number] === old ? name : old;
    others[number].forEach((other) => [old, name].includes(names[other]) && todo.add(other));
  }
  return next;
}

/** Simulated annealing, a round every minute. */
async function search(seconds) {
  const script = takeApart(await compressed());
  const size = (names) => zlib.brotliCompressSync(named(script, names)).length;
  const any = (list) => list[Math.floor(Math.random() * list.length)];
  const changed = (names) => {
    if (Math.random() < 0.1) {
      const [one, other] = [any(LETTERS), any(LETTERS)];
      return names.map((name) => (name === one ? other : name === other ? one : name));
    }
    return renamed(script, names, any([...names.keys()]), any(Math.random() < 0.5 ? LETTERS : names));
  };
  let current = { names: namesFor(script, [...NAMES]) };
  current.size = size(current.names);
  let best = current;
  console.log(best.names.join(""), best.size);
  const start = Date.now();
  for (let passed = 0; passed < seconds; passed = (Date.now() - start) / 1000) {
    const heat = 0.1 + 1.2 * (1 - (passed % 60) / 60) ** 1.5;
    const names = changed(current.names);
    const next = { names, size: size(names) };
    if (Math.random() < Math.exp((current.size - next.size) / heat)) current = next;
    if (current.size < best.size) console.log((best = current).names.join(""), best.size);
  }
}

async function build(folder) {
  const script = takeApart(await compressed());
  const small = named(script, namesFor(script, [...NAMES]));
  if (!isDeepStrictEqual(takeApart(small).pieces, script.pieces)) throw new Error("with its names the script would mean something else");
  fs.writeFileSync(`${folder}/scq.min.js`, small);
}

if (process.argv[2] === "--search") search(Number(process.argv[3] || 60));
else build(process.argv[2]);
