// Reads every .eml of a folder with mailparser and postal-mime; prints what each saw as JSON:
// { "<file>": { "mailparser": {...}, "postal-mime": {...} } }
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { simpleParser } from "mailparser";
import PostalMime from "postal-mime";

async function withMailparser(bytes) {
  const seen = await simpleParser(bytes, {
    skipHtmlToText: true,
    skipTextToHtml: true,
    skipImageLinks: true,
  });
  const mailboxes = (header) =>
    (header?.value ?? []).map(({ name, address }) => [name, address]);
  return {
    subject: seen.subject,
    from: mailboxes(seen.from),
    "reply-to": mailboxes(seen.replyTo),
    to: mailboxes(seen.to),
    text: seen.text,
    html: seen.html,
    attachments: seen.attachments.length,
  };
}

async function withPostalMime(bytes) {
  const seen = await PostalMime.parse(bytes);
  const mailboxes = (list) => (list ?? []).map(({ name, address }) => [name, address]);
  return {
    subject: seen.subject,
    from: mailboxes(seen.from ? [seen.from] : []),
    "reply-to": mailboxes(seen.replyTo),
    to: mailboxes(seen.to),
    text: seen.text,
    html: seen.html,
    attachments: seen.attachments.length,
  };
}

const folder = process.argv[2];
const all = {};
for (const file of readdirSync(folder).sort()) {
  if (!file.endsWith(".eml")) continue;
  const bytes = readFileSync(join(folder, file));
  all[file] = {
    mailparser: await withMailparser(bytes),
    "postal-mime": await withPostalMime(bytes),
  };
}
process.stdout.write(JSON.stringify(all));
