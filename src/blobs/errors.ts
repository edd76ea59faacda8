/** There is no sealed blob (or, for an upload, no unfinished one) under this storage key. */
export class BlobNotFoundError extends Error {
  override readonly name = 'BlobNotFoundError';
  readonly key: string;
  constructor(key: string) {
    super(`no blob ${key}`);
    this.key = key;
  }
}

/** The storage key is taken. Keys are never reused, so this is an error of the caller. */
export class BlobExistsError extends Error {
  override readonly name = 'BlobExistsError';
  readonly key: string;
  constructor(key: string) {
    super(`blob ${key} exists`);
    this.key = key;
  }
}

/** What is stored under this key is not what was written: damaged, cut, extended, or moved from another place. */
export class BlobCorruptError extends Error {
  override readonly name = 'BlobCorruptError';
  readonly key: string;
  constructor(key: string, what: string) {
    super(`blob ${key} is damaged: ${what}`);
    this.key = key;
  }
}

/** The blob is sealed: nothing can be appended to it, nor can it be sealed with another size. */
export class BlobSealedError extends Error {
  override readonly name = 'BlobSealedError';
  readonly key: string;
  constructor(key: string) {
    super(`blob ${key} is sealed`);
    this.key = key;
  }
}

/** Another append to, or the sealing of, this upload is under way in this process. */
export class UploadBusyError extends Error {
  override readonly name = 'UploadBusyError';
  readonly key: string;
  constructor(key: string) {
    super(`upload ${key} is being written`);
    this.key = key;
  }
}

/** The upload has never had this committed size, so it can neither go on from there nor end there. */
export class UploadOffsetError extends Error {
  override readonly name = 'UploadOffsetError';
  readonly key: string;
  readonly offset: number;
  constructor(key: string, offset: number) {
    super(`upload ${key} does not reach or cannot be cut at byte ${offset}`);
    this.key = key;
    this.offset = offset;
  }
}

/** The source sent more bytes than this append allows. */
export class ByteLimitError extends Error {
  override readonly name = 'ByteLimitError';
  readonly maxBytes: number;
  constructor(maxBytes: number) {
    super(`more than ${maxBytes} bytes arrived`);
    this.maxBytes = maxBytes;
  }
}
