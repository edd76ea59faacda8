/** A program for an image made FROM scratch, without a compiler: x86-64 and arm64 Linux. */

const BASE = 0x400000n;
const HEADERS = 64 + 56;

/** A static ELF executable that prints the text and exits with 0. */
export function smallestProgram(text: string): Buffer {
  const message = Buffer.from(text);
  const code = process.arch === 'arm64' ? arm64Code(message.length) : x64Code(message.length);
  const file = Buffer.concat([Buffer.alloc(HEADERS), code, message]);
  file.write('\x7fELF', 0, 'latin1');
  file.set([2, 1, 1], 4);
  file.writeUInt16LE(2, 16);
  file.writeUInt16LE(process.arch === 'arm64' ? 183 : 62, 18);
  file.writeUInt32LE(1, 20);
  file.writeBigUInt64LE(BASE + BigInt(HEADERS), 24);
  file.writeBigUInt64LE(64n, 32);
  file.writeUInt16LE(64, 52);
  file.writeUInt16LE(56, 54);
  file.writeUInt16LE(1, 56);
  // one segment: the whole file, readable and executable
  file.writeUInt32LE(1, 64);
  file.writeUInt32LE(5, 68);
  file.writeBigUInt64LE(BASE, 80);
  file.writeBigUInt64LE(BASE, 88);
  file.writeBigUInt64LE(BigInt(file.length), 96);
  file.writeBigUInt64LE(BigInt(file.length), 104);
  file.writeBigUInt64LE(0x1000n, 112);
  return file;
}

/** write(1, message, length); exit(0) — the message follows the code. */
function x64Code(length: number): Buffer {
  const code = Buffer.concat([
    Buffer.from([0xbf, 1, 0, 0, 0]), // mov edi, 1
    Buffer.from([0x48, 0x8d, 0x35, 18, 0, 0, 0]), // lea rsi, [rip + message]
    Buffer.from([0xba, 0, 0, 0, 0]), // mov edx, length
    Buffer.from([0xb8, 1, 0, 0, 0, 0x0f, 0x05]), // mov eax, 1 (write); syscall
    Buffer.from([0x31, 0xff]), // xor edi, edi
    Buffer.from([0xb8, 60, 0, 0, 0, 0x0f, 0x05]), // mov eax, 60 (exit); syscall
  ]);
  code.writeUInt32LE(length, 13);
  code.writeUInt32LE(code.length - 12, 8);
  return code;
}

function arm64Code(length: number): Buffer {
  const words = [
    0xd2800020, // mov x0, 1
    0x100000e1, // adr x1, message (7 instructions ahead)
    (0xd2800002 | (length << 5)) >>> 0, // mov x2, length
    0xd2800808, // mov x8, 64 (write)
    0xd4000001, // svc 0
    0xd2800000, // mov x0, 0
    0xd2800ba8, // mov x8, 93 (exit)
    0xd4000001, // svc 0
  ];
  const code = Buffer.alloc(words.length * 4);
  words.forEach((word, i) => code.writeUInt32LE(word, i * 4));
  return code;
}
