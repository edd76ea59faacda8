import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { addCounts, Counter, Metrics, noCounts, type MeasuredRequest } from './metrics.ts';

function request(given: Partial<MeasuredRequest> = {}): MeasuredRequest {
  return {
    door: 'oci',
    action: 'ecr:BatchGetImage',
    faultCode: undefined,
    response: { statusCode: 200 },
    blobBytesIn: 0,
    blobBytesOut: 0,
    ...given,
  };
}

function metricsOf(...counters: Counter[]): Metrics {
  return new Metrics(() => {
    const sum = noCounts();
    for (const { counts } of counters) addCounts(sum, structuredClone(counts));
    return Promise.resolve(sum);
  });
}

async function lines(metrics: Metrics, prefix: string): Promise<string[]> {
  return (await metrics.render()).split('\n').filter((line) => line.startsWith(prefix));
}

describe('metrics', () => {
  it('count requests by door, action and result', async () => {
    const counter = new Counter();
    const metrics = metricsOf(counter);
    counter.requestDone(request(), 1);
    counter.requestDone(request(), 1);
    counter.requestDone(request({ faultCode: 'ImageNotFoundException', response: { statusCode: 404 } }), 1);
    counter.requestDone(request({ door: 'none', action: undefined, response: { statusCode: 404 } }), 1);
    assert.deepEqual(await lines(metrics, 'berth_requests_total{'), [
      'berth_requests_total{door="oci",action="ecr:BatchGetImage",result="2xx"} 2',
      'berth_requests_total{door="oci",action="ecr:BatchGetImage",result="ImageNotFoundException"} 1',
      'berth_requests_total{door="none",action="none",result="4xx"} 1',
    ]);
  });

  it('have cumulative buckets', async () => {
    const counter = new Counter();
    const metrics = metricsOf(counter);
    for (const ms of [0.5, 0.6, 3, 700_000]) counter.requestDone(request(), ms);
    const shown = await lines(metrics, 'berth_request_duration_seconds');
    const values = (text: string) =>
      shown.filter((line) => line.includes(text)).map((line) => line.split(' ')[1]);
    assert.deepEqual(values('le="0.0005"'), ['1']);
    assert.deepEqual(values('le="0.001"'), ['2']);
    assert.deepEqual(values('le="0.005"'), ['3']);
    assert.deepEqual(values('le="600"'), ['3']);
    assert.deepEqual(values('le="+Inf"'), ['4']);
    assert.deepEqual(values('_count{'), ['4']);
    assert.equal(Number(values('_sum{')[0]).toFixed(4), '700.0041');
  });

  it('count bytes and transactions', async () => {
    const counter = new Counter();
    const metrics = metricsOf(counter);
    counter.requestDone(request({ blobBytesIn: 3 }), 1);
    counter.requestDone(request({ blobBytesOut: 4 }), 1);
    counter.transactionDone('image.put', 2, false);
    counter.transactionDone('image.put', 2, true);
    assert.deepEqual(await lines(metrics, 'berth_blob_bytes_total{'), [
      'berth_blob_bytes_total{direction="in"} 3',
      'berth_blob_bytes_total{direction="out"} 4',
    ]);
    assert.deepEqual(await lines(metrics, 'berth_transaction_failures_total{'), [
      'berth_transaction_failures_total{transaction="image.put"} 1',
    ]);
    assert.deepEqual(await lines(metrics, 'berth_transaction_duration_seconds_count'), [
      'berth_transaction_duration_seconds_count{transaction="image.put"} 2',
    ]);
  });

  it('add up what several threads have counted', async () => {
    const [a, b] = [new Counter(), new Counter()];
    a.requestDone(request({ blobBytesIn: 3 }), 0.4);
    b.requestDone(request({ blobBytesIn: 4 }), 0.6);
    b.requestDone(request({ faultCode: 'X' }), 1);
    b.transactionDone('image.put', 2, true);
    a.transactionDone('image.put', 2, false);
    const metrics = metricsOf(a, b);
    for (let scrape = 0; scrape < 2; scrape++) {
      assert.deepEqual(await lines(metrics, 'berth_requests_total{'), [
        'berth_requests_total{door="oci",action="ecr:BatchGetImage",result="2xx"} 2',
        'berth_requests_total{door="oci",action="ecr:BatchGetImage",result="X"} 1',
      ]);
      const [first, second] = await lines(metrics, 'berth_request_duration_seconds_bucket{');
      assert.match(`${first} ${second}`, /le="0.0005",.*} 1 .*le="0.001",.*} 3$/);
      assert.deepEqual(await lines(metrics, 'berth_blob_bytes_total{direction="in"}'), [
        'berth_blob_bytes_total{direction="in"} 7',
      ]);
      assert.deepEqual(await lines(metrics, 'berth_transaction_duration_seconds_count'), [
        'berth_transaction_duration_seconds_count{transaction="image.put"} 2',
      ]);
      assert.deepEqual(await lines(metrics, 'berth_transaction_failures_total'), [
        'berth_transaction_failures_total{transaction="image.put"} 1',
      ]);
    }
  });

  it('read gauges when asked, and leave out what fails', async () => {
    const metrics = metricsOf(new Counter());
    let value = 1;
    metrics.gauge({ name: 'test_a', help: 'a', read: () => value });
    metrics.gauge({ name: 'test_b', help: 'b', read: () => Promise.reject(new Error('gone')) });
    metrics.gauge({
      name: 'test_c',
      help: 'c',
      read: () => [{ labels: { name: 'a "quoted"\nname' }, value }],
    });
    assert.deepEqual(await lines(metrics, 'test_a'), ['test_a 1']);
    value = 2;
    assert.deepEqual(await lines(metrics, 'test_a'), ['test_a 2']);
    assert.deepEqual(await lines(metrics, 'test_b'), []);
    assert.deepEqual(await lines(metrics, 'test_c'), ['test_c{name="a \\"quoted\\"\\nname"} 2']);
  });

  it('tell about the process and its event loop', async () => {
    const text = await metricsOf(new Counter()).render();
    for (const name of [
      'process_cpu_seconds_total',
      'process_resident_memory_bytes',
      'nodejs_eventloop_lag_p99_seconds',
    ])
      assert.match(text, new RegExp(`^${name} [\\d.e+-]+$`, 'm'));
  });
});
