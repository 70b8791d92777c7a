// Texts to take along: to the clipboard, or, where a browser keeps that from a page, by hand.

const ODD = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu;

/** Values as JSON in which whatever is invisible, or moves other characters, is escaped. */
export function jsonText(values) {
  const escaped = (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`;
  return JSON.stringify(values, null, 1)
    .split("\n")
    .map((row) => row.replace(ODD, (character) => character.split("").map(escaped).join("")))
    .join("\n");
}

/** Puts a text on the clipboard; false where the browser does not let it. */
export async function toClipboard(text) {
  // There is none on pages that came over plain http from another machine.
  if (navigator.clipboard === undefined) return false;
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch (error) {
    if (error.name === "NotAllowedError") return false;
    throw error;
  }
}

/** Shows a text, marked, to be copied by hand. */
export function showToCopy(text) {
  const dialog = document.getElementById("to-copy");
  const field = dialog.querySelector("textarea");
  field.value = text;
  dialog.showModal();
  field.focus();
  field.select();
}
