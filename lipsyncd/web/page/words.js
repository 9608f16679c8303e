/** A job in words: what it is doing, how long it will take, what it is made of. */

import { sentence } from "./api.js";

const STAGES = {
  accepted: "Waiting to be checked",
  fetching: "Fetching the files",
  preparing: "Checking the files",
  linked: "Waiting for the same video of another job",
  loading: "Loading the renderer",
  rendering: "Making the video",
  encoding: "Writing the video",
  "waiting for the GPU": "Waiting for the GPU",
};

/** Which look a job has: the word chooses colour and mark, never the colour alone. */
export function lookOf(job) {
  if (job.state === "queued" || job.state === "publishing") return job.waits_for ? "blocked" : "waiting";
  return job.state;
}

/** The state as a few words. */
export function stateWords(job) {
  if (job.cancel_requested && !isEnded(job)) return "Being cancelled";
  switch (job.state) {
    case "done": return "Done";
    case "failed": return "Failed";
    case "cancelled": return "Cancelled";
    case "publishing": return job.waits_for ? "Blocked: the video is made and cannot be stored" : "Storing the video";
    case "running": return STAGES[job.stage] ?? "Making the video";
  }
  if (job.waits_for?.code === "same-work") return "Waiting for the same video of another job";
  if (job.waits_for) return "Blocked: it goes on by itself";
  if (job.position === 1) return "Waiting, next in the queue";
  if (job.position) return `Waiting, place ${job.position} in the queue`;
  return STAGES[job.stage] ?? "Waiting";
}

export function isEnded(job) {
  return job.state === "done" || job.state === "failed" || job.state === "cancelled";
}

/** "about 2 min left"; "" when nothing reliable is known. */
export function leftWords(job) {
  if (job.eta_s === null || job.eta_s === undefined || isEnded(job)) return "";
  const seconds = Math.max(1, Math.round(job.eta_s));
  if (seconds < 10) return "a few seconds left";
  if (seconds < 60) return `about ${Math.ceil(seconds / 5) * 5} s left`;
  const minutes = Math.round(seconds / 60);
  return minutes < 90 ? `about ${minutes} min left` : `about ${Math.round(minutes / 60)} h left`;
}

/** "2 of 4 cards render"; "" where there is one card. */
export function slotWords({ slots, busy }) {
  if (slots === 0) return "No card can be reached";
  return slots > 1 ? `${busy} of ${slots} cards ${busy === 1 ? "renders" : "render"}` : "";
}

/** What is wrong, and what helps. `null` when nothing is. */
export function trouble(job) {
  const found = job.error ?? job.waits_for;
  return found && found.code !== "same-work"
    ? { message: sentence(found.message), remedy: sentence(found.remedy ?? "") }
    : null;
}

/** Seconds as 0:07 or 1:02:03. */
export function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds + 0.05));
  const parts = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const [hours, minutes, rest] = parts;
  return `${hours ? `${hours}:${String(minutes).padStart(2, "0")}` : minutes}:${String(rest).padStart(2, "0")}`;
}

/** The length of a short sound with tenths, of a longer one as a clock. */
export function lengthWords(seconds) {
  return seconds < 10 ? `${seconds.toFixed(1)} s` : clock(seconds);
}

const TIME = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const DAY = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });

/** A time of today as hours and minutes, an older one with its day. */
export function timeWords(text) {
  const at = new Date(text);
  return (at.toDateString() === new Date().toDateString() ? TIME : DAY).format(at);
}

/** "3.2 s, preview, 14:05" */
export function factWords(job) {
  return [
    job.duration ? lengthWords(job.duration) : "",
    job.renderer ?? "",
    job.queue ? `folder ${job.queue}` : "",
    job.created_at ? timeWords(job.created_at) : "",
  ].filter(Boolean).join(" · ");
}
