/**
 * Which key encrypts a repository. Keys live in the key ring under names made from their ARN, and an alias always leads to
 * the same key id, so that nothing about KMS is stored but the ring and the `kmsKey` of repositories.
 */
import { createHash } from 'node:crypto';
import { Fault, invalidParameter } from '../domain/faults.ts';
import type { KeyRing } from '../lib/keyring.ts';
import type { EncryptionConfiguration } from '../model/ecr-types.ts';
import { keyFault } from './appending.ts';

interface RegistryScope {
  readonly account: string;
  readonly region: string;
}

export interface KmsKey {
  /** `arn:aws:kms:{region}:{account}:key/{id}` */
  readonly arn: string;
  /** name in the key ring */
  readonly ringName: string;
}

export interface Encryption {
  readonly encryptionType: 'AES256' | 'KMS';
  readonly kmsKey: string | undefined;
  readonly contentKey: string;
}

/** The alias of the key a registry makes for itself when a repository asks for KMS and names no key. */
export const MANAGED_ALIAS = 'alias/aws/ecr';

const KEY_ID = /^(mrk-)?[A-Za-z0-9][A-Za-z0-9-]{0,63}$/;
const ALIAS = /^alias\/[a-zA-Z0-9/_-]{1,250}$/;
const ARN = /^arn:aws:kms:([a-z0-9-]{1,32}):([0-9]{12}):(?:key\/([^/]+)|(alias\/.+))$/;

/** The key of an id in a registry. */
export function kmsKeyOfId({ account, region }: RegistryScope, id: string): KmsKey {
  return {
    arn: `arn:aws:kms:${region}:${account}:key/${id}`,
    ringName: `kms_${account}_${region}_${id}`,
  };
}

/** The key an alias leads to: its id is a UUID made from account, region and alias. */
export function kmsKeyOfAlias(scope: RegistryScope, alias: string): KmsKey {
  const hash = createHash('sha256').update(`berth kms\0${scope.account}\0${scope.region}\0${alias}`).digest();
  hash[6] = ((hash[6] ?? 0) & 0x0f) | 0x80;
  hash[8] = ((hash[8] ?? 0) & 0x3f) | 0x80;
  const hex = hash.toString('hex');
  const id = [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20, 32)];
  return kmsKeyOfId(scope, id.join('-'));
}

/**
 * The encryption of a new repository. Makes the registry's own key on its first use; a key the client names must exist.
 *
 * @throws Fault InvalidParameterException, KmsException
 */
export async function resolveEncryption(
  ring: KeyRing,
  scope: RegistryScope,
  wanted: EncryptionConfiguration | undefined,
): Promise<Encryption> {
  const { encryptionType, kmsKey } = wanted ?? { encryptionType: 'AES256' };
  if (encryptionType === 'KMS_DSSE') {
    throw invalidParameter('encryptionConfiguration', `KMS_DSSE is not supported in region ${scope.region}`);
  }
  if (encryptionType === 'AES256') {
    if (kmsKey !== undefined)
      throw invalidParameter(
        'encryptionConfiguration',
        'kmsKey is not allowed when encryptionType is set to AES256',
      );
    return { encryptionType, kmsKey: undefined, contentKey: 'default' };
  }
  const managed = kmsKeyOfAlias(scope, MANAGED_ALIAS);
  const key = kmsKey === undefined ? managed : findKmsKey(scope, kmsKey);
  if (kmsKey === undefined || key.ringName === managed.ringName)
    await ring.createKey(managed.ringName).catch((error: unknown) => {
      throw keyFault(error);
    });
  else if (!ring.has(key.ringName)) throw notFound(`Key '${key.arn}' does not exist`);
  return { encryptionType, kmsKey: key.arn, contentKey: key.ringName };
}

/** Reads a key id, key ARN, alias or alias ARN of the registry's own account and region. @throws Fault KmsException */
function findKmsKey(scope: RegistryScope, text: string): KmsKey {
  if (ALIAS.test(text)) return kmsKeyOfAlias(scope, text);
  if (KEY_ID.test(text)) return kmsKeyOfId(scope, text);
  const [, region, account, id, alias] = ARN.exec(text) ?? [];
  // WHY: keys of other accounts are "not found": without key policies nothing could say that they may be used here.
  if (region === scope.region && account === scope.account) {
    if (id !== undefined && KEY_ID.test(id)) return kmsKeyOfId(scope, id);
    if (alias !== undefined && ALIAS.test(alias)) return kmsKeyOfAlias(scope, alias);
  }
  throw notFound(region === undefined ? `Invalid keyId '${text}'` : `Key '${text}' does not exist`);
}

function notFound(message: string): Fault {
  return new Fault('KmsException', message, { kmsError: 'NotFoundException' });
}
