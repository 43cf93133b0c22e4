// The models run in the server that sent this page.
async function call(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The server does not answer: start `distill demo` again.");
  }
  const content = await response.json();
  if (!response.ok) throw Object.assign(new Error(content.error), { status: response.status });
  return content;
}

// Runs along the rows, background and mask in turns -> one byte for each pixel.
function unrolled(runs, length) {
  const mask = new Uint8Array(length);
  let end = 0;
  runs.forEach((run, i) => {
    mask.fill(i % 2, end, end + run);
    end += run;
  });
  return mask;
}

const GONE = 410; // the server keeps the embeddings of the last photos only

export const backend = {
  async start() {
    const { models, photo } = await call("api/start");
    const blob = await (await fetch("photo")).blob();
    return { models, photo, blob };
  },

  addPhoto(blob) {
    return call("api/photo", { method: "POST", body: blob });
  },

  async predict(photo, asked) {
    const send = () => call("api/predict", { method: "POST", body: JSON.stringify({ photo: photo.id, ...asked }) });
    let found;
    try {
      found = await send();
    } catch (error) {
      if (error.status !== GONE) throw error;
      photo.id = (await this.addPhoto(photo.blob)).id;
      found = await send();
    }
    for (const answer of found.answers) answer.mask = unrolled(answer.runs, photo.width * photo.height);
    return found;
  },
};
