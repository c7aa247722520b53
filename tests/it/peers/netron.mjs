// Opens a model with Netron's own readers, out of the browser, and prints what Netron would show as JSON:
//     node netron.mjs FOLDER/netron MODEL
// FOLDER is where `pip install --target FOLDER netron` put the package. Netron wants a host that serves its
// files (`asset`, `require`) and a context that stands for the opened model.

import { readFile } from 'node:fs/promises';
import { statSync } from 'node:fs';
import { basename, resolve } from 'node:path';
import { pathToFileURL } from 'node:url';

const [folder, model] = process.argv.slice(2).map((path) => resolve(path));
const load = (file) => import(pathToFileURL(`${folder}/${file}`).href);

// The package says nothing about its module type; its files are ES modules.
const { ModelFactoryService } = await load('view.js');
const { FileStream } = await load('node.js');
const zip = await load('zip.js');
await zip.Archive.import();

const asset = (file) => readFile(`${folder}/${file}`, 'utf-8');
const host = { require: (id) => load(`${id}.js`), asset, event: () => {}, exception: (error) => { throw error; } };
const stat = statSync(model);
const context = {
    identifier: basename(model),
    stream: new FileStream(model, 0, stat.size, stat.mtimeMs),
    entries: new Map(),
    require: host.require,
    asset,
    fetch: () => { throw new Error('the model is one file'); },
    error: (error) => { throw error; }
};

const opened = await new ModelFactoryService(host).open(context);
const graphs = opened.modules.map((graph) => {
    const values = new Map();
    const see = (argument) => [argument.value].flat().filter((value) => value && value.name !== undefined).forEach((value) => values.set(value.name, value));
    const nodes = graph.nodes.map((node) => {
        [...node.inputs, ...node.outputs].forEach(see);
        return { name: node.name, type: node.type.name };
    });
    graph.inputs.forEach(see);
    const tensors = [...values.values()].map((value) => ({
        name: value.name,
        type: value.type ? value.type.dataType : null,
        shape: value.type ? value.type.shape.dimensions.map(Number) : null,
        bytes: value.initializer && value.initializer.values ? value.initializer.values.length : null
    }));
    return { name: graph.name, nodes, tensors };
});
process.stdout.write(`${JSON.stringify({ format: opened.format, graphs })}\n`);
