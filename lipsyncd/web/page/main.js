/** The page: asks who the visitor is, then shows the form for the key, or the studio and the jobs. */

import { Refusal, call, onSignedOut } from "./api.js";
import { announce, setText } from "./dom.js";
import { Events } from "./events.js";
import { JobList } from "./joblist.js";
import { SignIn } from "./signin.js";
import { Studio } from "./studio.js";
import { slotWords } from "./words.js";

const AGAIN_MS = 3000;
const main = document.getElementById("main");
const signOut = document.getElementById("sign-out");
const connection = document.getElementById("connection");
const slots = document.getElementById("slots");
let session = { key_required: false, signed_in: true };

const jobs = new JobList({ onagain: (job, keep) => studio.again(job, keep) });
const studio = new Studio({ onsent: (job) => jobs.add(job), needsKey: () => session.key_required });
const signIn = new SignIn(begin);
const events = new Events(connection, {
  onopen: () => {
    jobs.began();
    setText(slots, ""); // a server with a single one does not name it
  },
  onslots: (found) => setText(slots, slotWords(found)),
  onjob: (job) => jobs.changed(job),
  ondeleted: (id) => jobs.removed(id),
  onrefused: async () => {
    try {
      await readSession();
      if (isKnown()) return true;
      showSignIn();
      return false;
    } catch {
      return true; // the server does not answer: it is asked again
    }
  },
});

onSignedOut.call = showSignIn;
signOut.addEventListener("click", async () => {
  try {
    await call("DELETE", "/session");
  } catch (refusal) {
    if (!(refusal instanceof Refusal) || refusal.status === 0) return setText(connection, "The server does not answer.");
  }
  announce("You are signed out.");
  location.reload(); // nothing of the one who was signed in remains on the page
});

async function readSession() {
  session = await call("GET", "/session");
}

function isKnown() {
  return session.signed_in || !session.key_required;
}

function showSignIn() {
  if (signIn.element.isConnected) return;
  events.close();
  setText(slots, "");
  signOut.hidden = true;
  main.replaceChildren(signIn.element);
  signIn.key.focus();
}

async function begin() {
  try {
    await readSession();
  } catch (refusal) {
    if (!(refusal instanceof Refusal)) throw refusal;
    setText(connection, refusal.message);
    setTimeout(begin, AGAIN_MS);
    return;
  }
  setText(connection, "");
  if (!isKnown()) return showSignIn();
  signOut.hidden = !session.key_required;
  signOut.title = session.name ? `Signed in as ${session.name}` : "";
  main.replaceChildren(studio.element, jobs.element);
  events.open();
}

begin();
