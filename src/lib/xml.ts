/** Writing XML text. Nothing here reads XML: requests of the Query protocol are forms. */

const SPECIAL = /[&<>"'\r]/g;
const NAMES: Readonly<Record<string, string>> = {
  '&': '&amp;',
  '<': '&lt;',
  '>': '&gt;',
  '"': '&quot;',
  "'": '&#39;',
  // a bare carriage return would be read back as a line feed
  '\r': '&#xD;',
};
/** Characters XML 1.0 cannot carry in any form. */
// oxlint-disable-next-line no-control-regex
const FORBIDDEN = /[\u0000-\u0008\u000B\u000C\u000E-\u001F\uFFFE\uFFFF]/g;

/** Text for element content or a quoted attribute value. What XML cannot carry becomes U+FFFD. */
export function escapeXml(text: string): string {
  return text
    .toWellFormed()
    .replace(FORBIDDEN, '\u{FFFD}')
    .replace(SPECIAL, (character) => NAMES[character] as string);
}

/** An element around content that is XML already. `name` must be an XML name. Empty content gives `<name/>`. */
export function element(name: string, content: string): string {
  return content === '' ? `<${name}/>` : `<${name}>${content}</${name}>`;
}
