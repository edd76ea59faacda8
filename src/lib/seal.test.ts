import assert from 'node:assert/strict';
import { createSecretKey, randomBytes } from 'node:crypto';
import { describe, it } from 'node:test';
import * as fc from 'fast-check';
import { seal, SEAL_OVERHEAD_BYTES, SealError, unseal } from './seal.ts';

describe('seal', () => {
  const key = createSecretKey(randomBytes(32));

  it('opens to the same bytes', () => {
    fc.assert(
      fc.property(fc.uint8Array(), fc.string(), (plaintext, purpose) => {
        const sealed = seal(key, purpose, plaintext);
        assert.equal(sealed.length, plaintext.length + SEAL_OVERHEAD_BYTES);
        assert.deepEqual(unseal(key, purpose, sealed), Buffer.from(plaintext));
      }),
    );
  });

  it('never gives the same bytes twice', () => {
    assert.notDeepEqual(seal(key, 'p', Buffer.from('secret')), seal(key, 'p', Buffer.from('secret')));
  });

  it('opens values sealed by version 1', () => {
    const fixed = createSecretKey(Buffer.alloc(32, 7));
    const sealed = Buffer.from(FIXED, 'hex');
    assert.equal(unseal(fixed, 'access key', sealed).toString(), 'secret');
  });

  it('refuses any flipped bit, any cut, another purpose and another key', () => {
    const sealed = seal(key, 'access key', Buffer.from('secret'));
    for (let bit = 0; bit < sealed.length * 8; bit += 1) {
      const damaged = Buffer.from(sealed);
      damaged[bit >> 3] = (damaged[bit >> 3] ?? 0) ^ (1 << (bit & 7));
      assert.throws(() => unseal(key, 'access key', damaged), SealError);
    }
    for (let length = 0; length < sealed.length; length += 1) {
      assert.throws(() => unseal(key, 'access key', sealed.subarray(0, length)), SealError);
    }
    assert.throws(() => unseal(key, 'registry token', sealed), SealError);
    assert.throws(() => unseal(createSecretKey(randomBytes(32)), 'access key', sealed), SealError);
  });
});

const FIXED = '01aa2281d2a1bf1f5c8066c9600d8d04bb107840524913e5ae2bbd9120a99250f9ed2e';
