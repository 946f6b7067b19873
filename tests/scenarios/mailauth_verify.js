// node mailauth_verify.js MODULE RECORDS FILE...: what npm's mailauth says of each DKIM signature of each file, as JSON.
// RECORDS is a JSON object: name → TXT record. No other DNS is asked.
const fs = require('fs');
const [module_, records, ...files] = process.argv.slice(2);
const { dkimVerify } = require(`${module_}/lib/dkim/verify.js`);
const zone = JSON.parse(fs.readFileSync(records, 'utf8'));

async function resolver(name, type) {
    if (type === 'TXT' && name in zone) {
        return [zone[name].match(/.{1,255}/g)];
    }
    throw Object.assign(new Error(`no ${type} of ${name}`), { code: 'ENOTFOUND' });
}

(async () => {
    const found = [];
    for (const file of files) {
        const { results } = await dkimVerify(fs.readFileSync(file), { resolver });
        found.push(results.map(one => [`${one.selector}._domainkey.${one.signingDomain}`, one.status.result, one.status.comment || '']));
    }
    console.log(JSON.stringify(found));
})();
