import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { allocateBuckets, RateLimiter, readRateLimits } from './rate-limits.ts';

describe('the setting', () => {
  const cases: [text: string, read: unknown][] = [
    ['', []],
    ['ecr:PutImage=5', [{ actions: 'ecr:PutImage', perSecond: 5, burst: 5 }]],
    [
      ' iam:*=2/20 , sts:Get*=1',
      [
        { actions: 'iam:*', perSecond: 2, burst: 20 },
        { actions: 'sts:Get*', perSecond: 1, burst: 1 },
      ],
    ],
    ['ecr:PutImage', undefined],
    ['ecr:PutImage=0', undefined],
    ['ecr:PutImage=1/0', undefined],
    ['ecr:Put*Image=1', undefined],
    ['s3:GetObject=1', undefined],
    ['*=1', undefined],
    ['ecr=1', undefined],
  ];
  for (const [text, read] of cases) it(`"${text}"`, () => assert.deepEqual(readRateLimits(text), read));

  it('"ecr" is the quotas of Amazon ECR', () => {
    const limits = readRateLimits('ecr') ?? [];
    assert.equal(limits.length, 8);
    assert.deepEqual(limits.at(-1), { actions: 'ecr:PutImage', perSecond: 10, burst: 10 });
  });
});

describe('the limiter', () => {
  function limiter(text: string, memory = allocateBuckets()) {
    const time = { now: 1_800_000_000_000 };
    const made = new RateLimiter(readRateLimits(text) ?? [], memory, () => time.now);
    const taken = (who: string, action: string, tries: number): number =>
      Array.from({ length: tries }, () => made.take(who, action)).filter(Boolean).length;
    return { time, taken };
  }

  it('lets a burst through and then the rate, to the request', () => {
    const { time, taken } = limiter('ecr:PutImage=10/25');
    assert.equal(taken('a', 'ecr:PutImage', 100), 25);
    time.now += 99;
    assert.equal(taken('a', 'ecr:PutImage', 5), 0);
    time.now += 1;
    assert.equal(taken('a', 'ecr:PutImage', 5), 1);
    time.now += 1000;
    assert.equal(taken('a', 'ecr:PutImage', 100), 10);
    time.now += 3_600_000;
    assert.equal(taken('a', 'ecr:PutImage', 100), 25);
  });

  it('counts principals apart, actions of one pattern together, and others not at all', () => {
    const { taken } = limiter('ecr:PutImage=3,ecr:*=2');
    assert.equal(taken('a', 'ecr:PutImage', 5), 3);
    assert.equal(taken('b', 'ecr:PutImage', 5), 3);
    assert.equal(taken('a', 'ecr:ListImages', 1), 1);
    assert.equal(taken('a', 'ecr:DescribeImages', 5), 1);
    assert.equal(taken('a', 'iam:ListUsers', 50), 50);
  });

  it('counts together with others on the same memory', () => {
    const memory = allocateBuckets();
    const [one, other] = [limiter('sts:*=10', memory), limiter('sts:*=10', memory)];
    assert.equal(one.taken('a', 'sts:GetCallerIdentity', 6), 6);
    assert.equal(other.taken('a', 'sts:GetCallerIdentity', 6), 4);
  });

  it('a clock that was set back locks nobody out', () => {
    const { time, taken } = limiter('ecr:PutImage=1/2');
    assert.equal(taken('a', 'ecr:PutImage', 3), 2);
    time.now -= 86_400_000;
    assert.equal(taken('a', 'ecr:PutImage', 3), 2);
  });

  it('stays within its memory however many come', () => {
    const { taken } = limiter('ecr:PutImage=1');
    for (let i = 0; i < 40_000; i += 1) assert.equal(taken(`principal ${i}`, 'ecr:PutImage', 1), 1);
    assert.equal(taken('principal 39999', 'ecr:PutImage', 1), 0);
  });
});
