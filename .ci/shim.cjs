// Does the work of .ci/shim.
const fs = require("fs");
const zlib = require("zlib");
const { minify } = require("terser");

// Names are drawn from these, the most used first. Which order compresses best only trying tells; this one was found by
// .ci/shim --search, and is worth about ten bytes of what browsers load.
const LETTERS = "eitclopgqsnfduhjrzaxwSkymvObP";

const SOURCE = fs.readFileSync("static/scq.js", "utf8");
const COMPRESS = { passes: 3, pure_getters: true, lhs_constants: false, booleans: false, global_defs: { DEBUG: false } };
const FORMAT = { ascii_only: true };

/** As terser does, with letters in another order: the nth name. */
const nth = (letters) => (n) => {
  const letter = letters[n % letters.length];
  const rest = Math.floor(n / letters.length);
  return rest ? letter + nth(letters)(rest - 1) : letter;
};

const compressed = async () =>
  (await minify(SOURCE, { ecma: 2018, toplevel: true, compress: COMPRESS, mangle: false, format: FORMAT })).code;

const named = async (code, letters) => {
  const mangle = { toplevel: true, nth_identifier: { get: nth(letters) } };
  return (await minify(code, { ecma: 2018, toplevel: true, compress: false, mangle, format: FORMAT })).code;
};

/** Bytes after brotli. */
const size = (code) => zlib.brotliCompressSync(code).length;

async function build(folder) {
  fs.writeFileSync(`${folder}/scq.min.js`, await named(await compressed(), LETTERS));
  const about = "/* The development build of scq.js, for a tag with data-debug. Made by .ci/shim: change scq.js instead. */\n";
  fs.writeFileSync(`${folder}/scq.debug.js`, about + SOURCE.replace(/\bDEBUG\b/g, "true"));
}

/** Swaps letters as long as that helps; when it no longer does, shuffles a few and goes on. */
async function search(seconds) {
  const code = await compressed();
  const end = Date.now() + seconds * 1000;
  const at = (length) => Math.floor(Math.random() * length);
  const swapped = (letters) => {
    const [i, j] = [at(24), at(letters.length)];
    const other = [...letters];
    [other[i], other[j]] = [other[j], other[i]];
    return other.join("");
  };
  let best = { letters: LETTERS, size: size(await named(code, LETTERS)) };
  console.log(best.letters, best.size);
  for (let current = best, stale = 0; Date.now() < end; stale++) {
    if (stale > 600) {
      const letters = [1, 2, 3, 4, 5, 6].reduce(swapped, best.letters);
      current = { letters, size: size(await named(code, letters)) };
      stale = 0;
    }
    const letters = swapped(current.letters);
    const next = { letters, size: size(await named(code, letters)) };
    if (next.size < current.size) stale = 0;
    if (next.size <= current.size) current = next;
    if (current.size < best.size) console.log((best = current).letters, best.size);
  }
}

if (process.argv[2] === "--search") search(Number(process.argv[3] || 60));
else build(process.argv[2]);
