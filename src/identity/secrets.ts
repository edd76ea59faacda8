import type { KeyRing } from '../lib/keyring.ts';
import { seal, unseal } from '../lib/seal.ts';

/** Purpose of the derived key that access-key secrets are sealed with. */
const PURPOSE = 'access key secrets';

/** Seals the secret of an access key for its row. It opens only under the same id: rows cannot be swapped. */
export function sealSecret(keys: KeyRing, accessKeyId: string, secret: string): Uint8Array {
  return seal(keys.derive(PURPOSE), `access key ${accessKeyId}`, Buffer.from(secret));
}

/** @throws {SealError} when the row was changed or sealed under another key ring */
export function unsealSecret(keys: KeyRing, accessKeyId: string, sealed: Uint8Array): string {
  return unseal(keys.derive(PURPOSE), `access key ${accessKeyId}`, sealed).toString();
}
