/** What dropped files are, and which of them belong together. The server decides by the bytes; this is a first guess. */

const PICTURES = /\.(jpe?g|jpe|jfif|png|webp|hei[cf]|avif|bmp|tiff?|gif)$/i;
const FILMS = /\.(mp4|m4v|mov|webm)$/i;
const SOUNDS = /\.(wav|mp3|m4a|m4b|og[ga]|opus|flac|aac|mp2|mpga|weba|mka|aiff?|caf|amr|3gp|3ga|w64)$/i;

export const PICTURE_TYPES = "image/*,.heic,.heif,.avif,video/mp4,video/quicktime,video/webm";
export const SOUND_TYPES = "audio/*,.opus,.mka,.caf,.w64,.amr,.m4b,video/mp4,video/webm";

export function isFilm(file) {
  return FILMS.test(file.name) || (file.type.startsWith("video/") && !SOUNDS.test(file.name));
}

/** "picture", "film", "sound" or "" for a file of another kind. */
function kindOf(file) {
  if (PICTURES.test(file.name) || file.type.startsWith("image/")) return "picture";
  if (SOUNDS.test(file.name) || file.type.startsWith("audio/")) return "sound";
  return isFilm(file) ? "film" : "";
}

export function stemOf(name) {
  return name.replace(/\.[^.]*$/, "");
}

/**
 * Sort files into orders. One picture with several sounds gives a video for each sound, and the other way round;
 * otherwise files of one stem are a pair. A film is the picture beside a sound, and the sound beside a picture.
 *
 * @param {File[]} files
 * @returns {{pairs: {picture?: File, sound?: File}[], others: File[]}} `others` are neither pictures nor sounds
 */
export function sortFiles(files) {
  const kinds = new Map(files.map((file) => [file, kindOf(file)]));
  const others = files.filter((file) => !kinds.get(file));
  const pictures = files.filter((file) => kinds.get(file) === "picture");
  const sounds = files.filter((file) => kinds.get(file) === "sound");
  for (const film of files.filter((file) => kinds.get(file) === "film")) {
    const has = (list) => list.some((file) => sameStem(file, film));
    (pictures.length && !sounds.length) || (has(pictures) && !has(sounds)) ? sounds.push(film) : pictures.push(film);
  }
  if (pictures.length === 1 && sounds.length) return { pairs: sounds.map((sound) => ({ picture: pictures[0], sound })), others };
  if (sounds.length === 1 && pictures.length) return { pairs: pictures.map((picture) => ({ picture, sound: sounds[0] })), others };
  const pairs = [];
  const left = new Set(sounds);
  for (const picture of pictures) {
    const sound = [...left].find((file) => sameStem(file, picture));
    left.delete(sound);
    pairs.push(sound ? { picture, sound } : { picture });
  }
  return { pairs: [...pairs, ...[...left].map((sound) => ({ sound }))], others };
}

function sameStem(a, b) {
  const [one, other] = [a, b].map((file) => stemOf(file.name).normalize("NFC").toLowerCase());
  return one === other;
}
